"""The fields of counterfactual generators for ImageNet (`cgn.imagenet`). The defaults are the reference's recipe."""

from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax.config import fields
from cfmlc_jax.config.cgn import NUM_MAPS
from cfmlc_jax.config.part import Bounds, Part
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.generators.biggan_deep import LINEAR, REVERSED
from cfmlc_jax.models.generators.imagenet_cgn import SIZES

# How classes of counterfactuals are chosen.
RANDOM, BEST = CLASSES = ("random", "best")


def _generator() -> ConfigDict:
    generator = ConfigDict()
    generator.size = "biggan_deep_256"  # a name of `models.generators.imagenet_cgn.SIZES`
    # How norms' statistics are interpolated between the stored truncations. reversed: the shares of the two neighbours
    # are exchanged, as in the reference. linear: they are not.
    generator.interpolation = REVERSED
    # Of the computation; parameters, masks and losses are always float32. auto: bfloat16 on GPUs and TPUs.
    generator.dtype = catalogue.AUTO
    # Names of the classes, which generated records need to have in common with the data of a classifier: a file with
    # one class per line. Empty: "class 17".
    generator.class_names = ""
    return generator


def _weights() -> ConfigDict:
    """Files of PyTorch, or safetensors, with the weights that a run starts from (docs/generators.md)."""
    weights = ConfigDict()
    weights.biggan = ""  # of all four BigGANs
    weights.u2net = ""
    weights.vgg16 = ""  # torchvision's
    weights.cgn = ""  # of a trained generator, instead of biggan and u2net
    # Networks without a file start from random weights: to try the program, as they draw no images of objects.
    weights.random = False
    return weights


def _loss() -> ConfigDict:
    """Weights of the losses. Those of styles are of the features' maps, the shallowest first; they are squared."""
    loss = ConfigDict()
    loss.l1 = 100.0  # of the absolute distance from the target
    loss.style = (4.0, 4.0, 4.0, 4.0)  # of the style distance from the target
    loss.entropy = 300.0  # of the mask's entropy
    loss.mask = 500.0  # of the distance of the mask's mean from [.1, .9]
    loss.text = (0.0, 5.0, 5.0, 0.0)  # of the texture's style distance from patches inside the mask
    loss.background = 2000.0  # of the background's saliency
    return loss


def _optim() -> ConfigDict:
    """Adam, with a learning rate for each mechanism."""
    optim = ConfigDict()
    optim.shape = 8e-6
    optim.texture = 3e-5
    optim.background = 1e-5
    optim.b1 = 0.9
    optim.b2 = 0.999
    return optim


def _train() -> ConfigDict:
    train = ConfigDict()
    train.truncation = 1.0  # of the noise and of the norms' statistics, in (0, 1]
    train.micro_batch = 1  # images whose mean loss is differentiated at once, over all devices
    train.micro_batches = 4000  # their gradients are summed for one step
    train.steps_per_epoch = 10  # there is no data: an epoch is the steps between two validations
    train.epochs = 30
    train.log_every = 1  # steps between two logs
    train.checkpoint_every = 1  # steps between further checkpoints; 0: save only after each epoch
    # What to do if after an epoch the masks are empty or full, or all alike. warn: say so. stop: end with an error.
    train.on_collapse = "warn"
    return train


def _evaluate() -> ConfigDict:
    """The drawn images that are measured after an epoch."""
    return ConfigDict({"num_images": 64, "batch_size": 4})


def _counterfactuals() -> ConfigDict:
    """The records that are generated after training."""
    counterfactuals = ConfigDict()
    counterfactuals.num_records = 1000  # 0: none
    counterfactuals.per_shape = 1  # images that share a shape and noise, with other textures and backgrounds
    counterfactuals.shard_size = 1000  # records in a file
    counterfactuals.truncation = 0.5  # of the noise and of the norms' statistics, in (0, 1]
    # random: each mechanism has any class. best: one of a list of classes that look good, by the reference.
    counterfactuals.classes = RANDOM
    return counterfactuals


SECTIONS: dict[str, Any] = {
    "system": lambda: "cgn_imagenet",
    "seed": fields.SECTIONS["seed"],
    "generator": _generator,
    "weights": _weights,
    "loss": _loss,
    "optim": _optim,
    "train": _train,
    "evaluate": _evaluate,
    "counterfactuals": _counterfactuals,
    "mesh": fields.SECTIONS["mesh"],
    "report": fields.SECTIONS["report"],
}

_MOST = 2**31 - 1  # an int32
_TRUNCATION = Bounds(0, 1, open=True)
_RATE = Bounds(open=True)
_COUNT = Bounds(1, 1_000_000)
BOUNDS = {
    "seed": fields.BOUNDS["seed"],
    "optim.shape": _RATE,
    "optim.texture": _RATE,
    "optim.background": _RATE,
    "optim.b1": Bounds(0, 0.9999),
    "optim.b2": Bounds(0, 0.999999),
    "train.truncation": _TRUNCATION,
    "train.micro_batch": _COUNT,
    "train.micro_batches": _COUNT,
    "train.steps_per_epoch": _COUNT,
    "train.epochs": fields.BOUNDS["train.epochs"],
    "train.log_every": Bounds(1),
    "evaluate.num_images": _COUNT,
    "evaluate.batch_size": _COUNT,
    "counterfactuals.num_records": Bounds(0, 100_000_000),
    "counterfactuals.per_shape": Bounds(1, 10_000),
    "counterfactuals.shard_size": Bounds(1, 10_000_000),
    "counterfactuals.truncation": _TRUNCATION,
    "mesh.fsdp": Bounds(1),
}


def _choices():
    return {
        "generator.size": SIZES,
        "generator.interpolation": (REVERSED, LINEAR),
        "generator.dtype": catalogue.DTYPES,
        "train.on_collapse": ("warn", "stop"),
        "counterfactuals.classes": CLASSES,
    }


def _check(config: ConfigDict) -> None:
    fields.check_report(config)
    for name in ("style", "text"):
        if len(config.loss[name]) != NUM_MAPS:
            raise InputError(
                f"config.loss.{name} has {len(config.loss[name])} weights; give {NUM_MAPS}, one for each map of the features"
            )
    _check_weights(config.weights)
    size, at_once = config.evaluate.num_images, config.evaluate.batch_size
    if size % at_once:
        raise InputError(f"config.evaluate.num_images {size} is not divisible by batch_size {at_once}")
    images, steps = config.train.micro_batch * config.train.micro_batches, config.train.steps_per_epoch
    if images > _MOST or steps * config.train.epochs > _MOST:
        raise InputError(
            f"config.train has {images} images in a step and {steps * config.train.epochs} steps; at most {_MOST} of each"
        )
    records, per_shape = config.counterfactuals.num_records, config.counterfactuals.per_shape
    if records % per_shape or config.counterfactuals.shard_size % per_shape:
        raise InputError(
            f"config.counterfactuals.per_shape {per_shape} must divide num_records {records} and shard_size "
            f"{config.counterfactuals.shard_size}: images that share a shape are in one file"
        )
    if config.counterfactuals.classes == BEST and SIZES[config.generator.size].num_classes != 1000:
        raise InputError(
            "config.counterfactuals.classes 'best' are lists of ImageNet's 1000 classes; use 'random' with "
            f"generator.size {config.generator.size!r}"
        )


def _check_weights(weights):
    if weights.cgn and (weights.biggan or weights.u2net):
        raise InputError(
            "config.weights.cgn is instead of config.weights.biggan and config.weights.u2net; leave either empty"
        )
    if bool(weights.biggan) != bool(weights.u2net):
        raise InputError(
            "config.weights.biggan and config.weights.u2net belong together; give both files, or neither"
        )


PART = Part(
    sections=SECTIONS,
    bounds=BOUNDS,
    choices=_choices,
    paths=("generator.class_names", "weights.biggan", "weights.u2net", "weights.vgg16", "weights.cgn"),
    neutral=("weights.", "evaluate.", "counterfactuals.", "mesh.", "report.", "train.on_collapse"),
    unique=("report.writers",),
    expand=lambda config: None,
    check=_check,
    check_training=lambda config: None,
    uses=fields.report_uses,
)
