"""A trained generator, opened from a checkpoint to draw counterfactuals."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn import build, counterfactuals
from cfmlc_jax.cgn.imagenet import build as imagenet
from cfmlc_jax.cgn.imagenet import drawing
from cfmlc_jax.errors import InputError


class Opened(NamedTuple):
    """What `counterfactuals.write` takes of a generator.

    generator: draws images.
    variables: its weights.
    class_names: in label order.
    mesh: the devices.
    origin: where its images come from, JSON types.
    per_shape: images that share a shape, unless a user gives another number.
    options: `inputs`, `image_size` and `at_once`, where they differ from those of digits.
    """

    generator: Any
    variables: Any
    class_names: Sequence[str]
    mesh: jax.sharding.Mesh
    origin: dict[str, Any]
    per_shape: int
    options: dict[str, Any]


def open(path: Path, *, truncation: float | None = None, classes: str | None = None) -> Opened:
    """The generator of a checkpoint.

    Args:
        path: of the checkpoint.
        truncation: of a generator for ImageNet; None: that of its configuration.
        classes: likewise, one of `config.cgn_imagenet.CLASSES`.

    Raises:
        InputError: the checkpoint cannot be read or is of a classifier; a truncation outside (0, 1]; an option that
            the generator does not have.
    """
    meta = checkpoints.read_meta(path)
    system = configs.system(meta["config"])
    if system not in _OPENINGS:
        raise InputError(
            f"checkpoint {path} is of a classifier, which draws nothing; give a run of configs/cgn_digits.py"
        )
    return _OPENINGS[system](path, meta, truncation, classes)


def imagenet_options(config, parts: imagenet.Parts, *, truncation: float | None, classes: str | None):
    """The generator by labels, origin and options (`Opened`) of a configuration for ImageNet.

    Raises:
        InputError: a truncation outside (0, 1], or class lists that do not fit.
    """
    truncation = config.counterfactuals.truncation if truncation is None else truncation
    classes = classes or config.counterfactuals.classes
    generator = drawing.ByLabels(parts.generator, truncation)
    origin = {"truncation": truncation, "classes": classes}
    options = {
        "inputs": drawing.inputs_of(drawing.class_lists(classes, generator.num_classes)),
        "image_size": parts.image_size,
        "at_once": drawing.AT_ONCE,
    }
    return generator, origin, options


def _open_digits(path, meta, truncation, classes):
    for flag, value in (("truncation", truncation), ("classes", classes)):
        if value is not None:
            raise InputError(
                f"--{flag} is for generators of system {configs.CGN_IMAGENET!r}, not of digits; omit it"
            )
    config = configs.from_json(meta["config"])
    parts = build.create(config, len(meta["class_names"]))
    model = checkpoints.read_model(path, build.model_item(config, parts))
    return Opened(
        parts.generator,
        counterfactuals.drawing_weights(model["average"], parts.generator, config.optim.ema_decay),
        meta["class_names"],
        parts.mesh,
        {"checkpoint": path.name, "data": config.data.source},
        per_shape=10,
        options={},
    )


def _open_imagenet(path, meta, truncation, classes):
    config = configs.from_json(meta["config"])
    parts = imagenet.create(config)
    generator, origin, options = imagenet_options(config, parts, truncation=truncation, classes=classes)
    return Opened(
        generator,
        checkpoints.read_model(path, imagenet.model_item(config, parts)),
        meta["class_names"],
        parts.mesh,
        {"checkpoint": path.name} | origin,
        per_shape=1,
        options=options,
    )


_OPENINGS: dict[str, Callable[..., Opened]] = {
    configs.CGN: _open_digits,
    configs.CGN_IMAGENET: _open_imagenet,
}
