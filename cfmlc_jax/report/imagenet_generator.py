"""The report of a counterfactual generator for ImageNet: its losses and masks."""

from cfmlc_jax.report.sections.configuration import configuration
from cfmlc_jax.report.sections.training import Chart, TrainingView, training
from cfmlc_jax.report.task import Section, Task

_LOSSES = {
    "l1": ("distance to the target", "whole"),
    "style": ("style", "texture"),
    "entropy": ("entropy of masks", "tde-feature"),
    "mask": ("size of masks", "shape"),
    "text": ("texture patches", "patch"),
    "background": ("background", "background"),
}
_MASKS = {
    "mask_binary": ("pixels below .1 or above .9", "whole"),
    "mask_mean": ("mean", "shape"),
    "mask_deviation": ("deviation between masks", "texture"),
}
_NORMS = {
    "shape": ("shape", "shape"),
    "texture": ("texture", "texture"),
    "background": ("background", "background"),
}


def _trained_as(config) -> str:
    return f"generator {config['generator']['size']}"


TRAINING = TrainingView(
    charts=(
        Chart(
            "Losses in training",
            "loss",
            {f"train/{name}": line for name, line in _LOSSES.items()} | {"train/loss": ("sum", "combined")},
        ),
        Chart(
            "Losses after epochs, on the same noise",
            "loss",
            {f"val/weights/{name}": line for name, line in _LOSSES.items()},
        ),
        Chart("Masks", "%", {f"val/weights/{name}": line for name, line in _MASKS.items()}),
        Chart("Gradient norms", "norm", {f"train/grad_norm_{name}": line for name, line in _NORMS.items()}),
    ),
    columns={f"val/weights/{name}": words for name, (words, _) in (_LOSSES | _MASKS).items()},
    caption="Validation of the generator by epoch",
)
TASK = Task(
    kicker=lambda run: "Counterfactual generator for ImageNet",
    trained_as=_trained_as,
    evaluated=None,
    sections=(
        Section("training", "Training", lambda run, alphas: training(run, TRAINING)),
        Section("configuration", "Configuration", lambda run, alphas: configuration(run)),
    ),
)
