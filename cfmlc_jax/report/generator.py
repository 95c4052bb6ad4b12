"""The report of a counterfactual generative network: its sections."""

from cfmlc_jax.report.sections.configuration import configuration
from cfmlc_jax.report.sections.cues import cues
from cfmlc_jax.report.sections.mechanisms import mechanisms
from cfmlc_jax.report.sections.training import Chart, TrainingView, by_weights, training
from cfmlc_jax.report.task import Section, Task


def _trained_as(config) -> str:
    return f"generator of {config['generator']['ngf']} features, {config['critic']['name']} critic"


_MASKS = {
    "mask_binary": "pixels below .1 or above .9",
    "mask_mean": "mean",
    "mask_deviation": "deviation between masks",
}
TRAINING = TrainingView(
    charts=(
        Chart("Shape accuracy", "%", by_weights("shape_accuracy")),
        Chart(
            "Masks of the averaged weights",
            "%",
            {
                f"val/average/{metric}": (words, colour)
                for (metric, words), colour in zip(_MASKS.items(), ("whole", "shape", "texture"), strict=True)
            },
        ),
        Chart(
            "Loss of the generator",
            "loss",
            {
                "train/adversarial": ("critic’s cost", "background"),
                "train/entropy": ("entropy of masks", "tde-feature"),
                "train/style": ("style", "texture"),
                "train/loss": ("sum", "combined"),
            },
        ),
        Chart(
            "Loss of the critic",
            "loss",
            {
                "train/critic_real": ("real images", "patch"),
                "train/critic_generated": ("generated images", "tde-pivot"),
                "train/loss_critic": ("mean", "combined"),
            },
        ),
        Chart(
            "Scores of the critic after epochs",
            "score, 1: real",
            {
                "val/average/critic_real": ("real images", "patch"),
                "val/average/critic_generated": ("generated images", "tde-pivot"),
            },
        ),
        Chart(
            "Gradient norms",
            "norm",
            {
                "train/grad_norm": ("generator", "combined"),
                "train/grad_norm_critic": ("critic", "tde-pivot"),
            },
        ),
    ),
    columns={
        "val/weights/shape_accuracy": "shape accuracy, raw",
        "val/average/shape_accuracy": "averaged",
        "val/average/mask_iou": "mask IoU",
        "val/average/mask_mean": "mask mean",
        "val/average/mask_deviation": "deviation",
        "val/average/mask_binary": "binary pixels",
        "val/average/critic_real": "critic, real",
        "val/average/critic_generated": "generated",
    },
    caption="Validation of the generator by epoch",
)
TASK = Task(
    kicker=lambda run: "Counterfactual generative network",
    trained_as=_trained_as,
    evaluated=None,
    sections=(
        Section("mechanisms", "Mechanisms", lambda run, alphas: mechanisms(run)),
        Section("cues", "Classifiers", lambda run, alphas: cues(run)),
        Section("training", "Training", lambda run, alphas: training(run, TRAINING)),
        Section("configuration", "Configuration", lambda run, alphas: configuration(run)),
    ),
)
