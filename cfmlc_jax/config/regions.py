"""The fields of classifiers of a detector's stored regions (`regions`). The defaults are the reference's recipe for LVIS v1."""

import math
from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax.config import fields
from cfmlc_jax.config.part import Bounds, Part, Use, uses_of
from cfmlc_jax.data.regions import lvis
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads import box
from cfmlc_jax.optim.build import OPTIMIZERS, SCHEDULES


def _data() -> ConfigDict:
    data = ConfigDict()
    data.train = ""  # folder of records with labels (`data.regions.records`)
    data.val = ""  # folder of records of the split that is scored
    data.annotations = ""  # JSON file of that split, in the form of LVIS
    data.version = "v1"  # of LVIS: v1 (1,203 categories), v0.5 (1,230); own: other data in its form
    data.threads = 8  # that read records
    return data


def _model() -> ConfigDict:
    """The class branch of each stage of a cascade."""
    model = ConfigDict()
    model.features = (1024,)  # shape of a region's stored features: (d,), or (h, w, c) of a map
    model.stages = 3  # of the cascade; 1: of a detector without
    # 0: features are classified as they are, because the detector's shared layers were applied before they were stored;
    # 2: layers of `hidden` features are trained, as in the reference.
    model.shared_layers = 0
    model.hidden = 1024
    # causal: De-confound. cosine, capsule: without gamma, with another norm of features. linear: a dot product and a bias.
    model.classifier = "causal"
    model.num_heads = 2
    model.tau = 16.0
    model.gamma = 1 / 32
    model.epsilon = 1e-9  # added to norms
    model.momentum = box.MOMENTUM  # of the mean feature
    # Regions whose features are averaged. foreground: those with an object. positive_labels: what the reference's program
    # for LVIS v1 does: all but those of the first class, with the background.
    model.counted = "foreground"
    return model


def _loss() -> ConfigDict:
    return ConfigDict({"stages": (1.0, 0.5, 0.25)})  # weights of the stages' cross-entropies


def _effect() -> ConfigDict:
    """The total direct effect, by which regions are scored after training."""
    effect = ConfigDict()
    effect.alpha = box.ALPHA  # its strength
    effect.alphas = (0.5, 1.0, 1.5, 2.0)  # strengths of the final evaluation
    # Whether the background keeps its probability. False: the effect decides of it too (the reference's ablation).
    effect.exempt_background = True
    return effect


def _optim() -> ConfigDict:
    optim = fields.SECTIONS["optim"]()
    del optim.ema_decay
    optim.name = "sgd"
    optim.learning_rate = 0.02
    optim.sgd.warmup_epochs = 0
    optim.sgd.milestones = (17, 20)
    optim.sgd.drop = 0.1
    return optim


def _train() -> ConfigDict:
    train = ConfigDict()
    train.batch_size = 16  # images, over all devices
    train.regions = 512  # of an image, in each stage
    train.foreground = 0.25  # greatest share of them that has an object
    train.epochs = 20
    train.log_every = 50  # steps between two logs
    train.checkpoint_every = 0  # steps between further checkpoints; 0: save only after each epoch
    return train


def _evaluate() -> ConfigDict:
    evaluate = ConfigDict()
    evaluate.batch_size = 4096  # regions, over all devices
    evaluate.every = 1  # epochs between two validations; the last epoch is always validated
    evaluate.checkpoint = "last"  # to evaluate after training: best (by AP), or last as in the reference
    evaluate.overlap = (
        0.5  # intersection over union above which the region of the lower score is dropped, by class
    )
    evaluate.score_threshold = (
        1e-5  # regions with at most this probability of a class are not detections of it
    )
    evaluate.most = 300  # detections of an image
    # A softmax of the stages' mean probabilities, as in the reference: it brings them close to each other, in the same order
    # within a region.
    evaluate.second_softmax = False
    return evaluate


SECTIONS: dict[str, Any] = {
    "system": lambda: "regions",
    "seed": fields.SECTIONS["seed"],
    "data": _data,
    "model": _model,
    "loss": _loss,
    "effect": _effect,
    "optim": _optim,
    "train": _train,
    "evaluate": _evaluate,
    "mesh": fields.SECTIONS["mesh"],
    "report": fields.SECTIONS["report"],
}

_COUNT = Bounds(1, 1_000_000)
_SHARE = Bounds(0, 1)
_OPTIM = {
    name: bounds
    for name, bounds in fields.BOUNDS.items()
    if name.startswith("optim.") and name != "optim.ema_decay"
}
BOUNDS = _OPTIM | {
    "seed": fields.BOUNDS["seed"],
    "data.threads": fields.BOUNDS["data.threads"],
    "model.features": _COUNT,
    "model.stages": Bounds(1, 100),
    "model.shared_layers": Bounds(0, 100),
    "model.hidden": _COUNT,
    "model.num_heads": Bounds(1),
    "model.tau": Bounds(open=True),
    "model.momentum": _SHARE,
    "train.batch_size": fields.BOUNDS["train.batch_size"],
    "train.regions": _COUNT,
    "train.foreground": _SHARE,
    "train.epochs": fields.BOUNDS["train.epochs"],
    "train.log_every": Bounds(1),
    "evaluate.batch_size": _COUNT,
    "evaluate.every": Bounds(1),
    "evaluate.overlap": _SHARE,
    "evaluate.score_threshold": _SHARE,
    "evaluate.most": Bounds(1, 100_000),
    "mesh.fsdp": Bounds(1),
}


def _choices():
    return {
        "data.version": (*lvis.CATEGORIES, lvis.OWN),
        "model.classifier": box.CLASSIFIERS,
        "model.counted": box.COUNTED,
        "optim.name": OPTIMIZERS,
        "optim.sgd.schedule": SCHEDULES,
        "evaluate.checkpoint": ("best", "last"),
    }


def width(model: ConfigDict) -> int:
    """The number of features that are classified."""
    return model.hidden if model.shared_layers else math.prod(model.features)


def _check(config: ConfigDict) -> None:
    fields.check_report(config)
    model = config.model
    if len(model.features) not in (1, 3):
        raise InputError(
            f"config.model.features {tuple(model.features)} must be one number, (d,), or three, (h, w, c)"
        )
    if len(config.loss.stages) != model.stages:
        raise InputError(
            f"config.loss.stages has {len(config.loss.stages)} weights for {model.stages} stages; give one for each"
        )
    if model.classifier != box.LINEAR and width(model) % model.num_heads:
        raise InputError(
            f"config.model.num_heads {model.num_heads} does not divide the {width(model)} features; use a divisor"
        )
    milestones = config.optim.sgd.milestones
    if list(milestones) != sorted(milestones):
        raise InputError(f"config.optim.sgd.milestones {tuple(milestones)} must ascend")


def _uses(config: ConfigDict) -> list[Use]:
    optim, has_effect = config.optim, config.model.classifier != box.LINEAR
    cosine = tuple(f"model.{name}" for name in ("num_heads", "tau", "epsilon", "momentum", "counted"))
    return [
        *uses_of("optim", {name: each.fields for name, each in OPTIMIZERS.items()}, optim.name),
        *uses_of("optim.sgd", {name: each.fields for name, each in SCHEDULES.items()}, optim.sgd.schedule),
        Use(("model.hidden",), config.model.shared_layers > 0),
        Use((*cosine, "effect."), has_effect),
        Use(("model.gamma",), config.model.classifier == "causal"),
        *fields.report_uses(config),
    ]


PART = Part(
    sections=SECTIONS,
    bounds=BOUNDS,
    choices=_choices,
    paths=("data.train", "data.val", "data.annotations"),
    # A checkpoint knows its records by their content.
    neutral=("data.", "effect.", "evaluate.", "mesh.", "report."),
    unique=("report.writers", "effect.alphas"),
    expand=lambda config: None,
    check=_check,
    check_training=lambda config: None,
    uses=_uses,
)
