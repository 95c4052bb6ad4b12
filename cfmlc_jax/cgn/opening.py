"""Trained generators, opened from checkpoints: those of digits, and any to draw counterfactual records."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn import build, counterfactuals, scenes
from cfmlc_jax.cgn.build import Parts
from cfmlc_jax.cgn.imagenet import build as imagenet
from cfmlc_jax.cgn.imagenet import drawing
from cfmlc_jax.config.cgn import SCENE_OBJECTS
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources.scene_objects import SceneObjects
from cfmlc_jax.errors import InputError


@dataclass(frozen=True)
class Opened:
    """The generator of digits of a checkpoint.

    path: of the checkpoint.
    config: the checkpoint's.
    class_names: in label order.
    parts: built from `config`.
    """

    path: Path
    config: Any
    class_names: list[str]
    parts: Parts

    def drawing_weights(self) -> dict[str, Any]:
        """The weights that draw counterfactuals, {"params", "batch_stats"}: the averaged ones.

        Raises:
            InputError: the arrays cannot be read, or are of another model.
        """
        model = checkpoints.read_model(self.path, build.model_item(self.config, self.parts))
        return counterfactuals.drawing_weights(
            model["average"], self.parts.generator, self.config.optim.ema_decay
        )


class Drawing(NamedTuple):
    """How records are written with a generator.

    write: a function of the folder, and by name num_records, shard_size, seed, print_line and poll; and per_shape,
        unless that is None.
    per_shape: images that share a shape, unless a user gives another number; None for scenes, whose objects share none.
    """

    write: Callable[..., None]
    per_shape: int | None


def open(path: Path) -> Opened:
    """The generator of digits of a checkpoint, on all present devices, however many the run had.

    Args:
        path: a checkpoint, or the workdir of a run for its best checkpoint.

    Raises:
        InputError: there is no such checkpoint, it cannot be read, or it is of another system.
    """
    path, meta, system = _read(path)
    if system != configs.CGN:
        raise InputError(
            f"checkpoint {path} is of a generator for ImageNet; give one of digits (configs/cgn_digits.py)"
        )
    return _open_digits(path, meta)


def open_to_draw(
    path: Path,
    *,
    truncation: float | None = None,
    classes: str | None = None,
    removals_alone: bool = False,
) -> Drawing:
    """The generator of a checkpoint, of digits, of the objects of scenes, or for ImageNet.

    Args:
        path: a checkpoint, or the workdir of a run for its best checkpoint.
        truncation: of a generator for ImageNet; None: that of its configuration.
        classes: likewise, one of `config.cgn_imagenet.CLASSES`.
        removals_alone: of scenes, as in `scenes.write`.

    Raises:
        InputError: the checkpoint cannot be read or is of a classifier; a truncation outside (0, 1]; an option that
            the generator does not have.
    """
    path, meta, system = _read(path)
    return _DRAWINGS[system](path, meta, truncation, classes, removals_alone)


def imagenet_options(config, parts: imagenet.Parts, *, truncation: float | None, classes: str | None):
    """The generator by labels, origin and options of `counterfactuals.write`, of a configuration for ImageNet.

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


def _read(path):
    """Path, metadata and system of a generator's checkpoint."""
    path = checkpoints.find(path)
    meta = checkpoints.read_meta(path)
    with checkpoints.understanding(path, meta):
        system = configs.system(meta["config"])
    if system not in _DRAWINGS:
        raise InputError(
            f"checkpoint {path} is of a classifier, which draws nothing; give a run of configs/cgn_digits.py"
        )
    return path, meta, system


def _open_digits(path, meta):
    with checkpoints.understanding(path, meta):
        config = configs.from_json(meta["config"])
    with config.unlocked():
        config.mesh.fsdp = 1
    return Opened(path, config, meta["class_names"], build.create(config, len(meta["class_names"])))


def _draw_digits(path, meta, truncation, classes, removals_alone):
    for flag, value in (("truncation", truncation), ("classes", classes)):
        if value is not None:
            raise InputError(
                f"--{flag} is for generators of system {configs.CGN_IMAGENET!r}, not of digits; omit it"
            )
    opened = _open_digits(path, meta)
    config, generator, variables = opened.config, opened.parts.generator, opened.drawing_weights()
    common = {"mesh": opened.parts.mesh, "origin": {"checkpoint": path.name, "data": config.data.source}}
    if config.data.source == SCENE_OBJECTS:
        write = functools.partial(
            scenes.write,
            generator=generator,
            variables=variables,
            source=cast(SceneObjects, data.source(config.data, "train")),
            generated_backgrounds=config.counterfactuals.generated_backgrounds,
            removals_alone=removals_alone,
            **common,
        )
        return Drawing(write, per_shape=None)
    _require_scenes(path, removals_alone)
    write = functools.partial(
        counterfactuals.write,
        generator=generator,
        variables=variables,
        class_names=opened.class_names,
        **common,
    )
    return Drawing(write, per_shape=10)


def _draw_imagenet(path, meta, truncation, classes, removals_alone):
    _require_scenes(path, removals_alone)
    with checkpoints.understanding(path, meta):
        config = configs.from_json(meta["config"])
    parts = imagenet.create(config)
    generator, origin, options = imagenet_options(config, parts, truncation=truncation, classes=classes)
    write = functools.partial(
        counterfactuals.write,
        generator=generator,
        variables=checkpoints.read_model(path, imagenet.model_item(config, parts)),
        class_names=meta["class_names"],
        mesh=parts.mesh,
        origin={"checkpoint": path.name} | origin,
        **options,
    )
    return Drawing(write, per_shape=1)


def _require_scenes(path, removals_alone):
    if removals_alone:
        raise InputError(f"--removals-alone is for scenes, and {path} draws single objects; omit it")


_DRAWINGS: dict[str, Callable[..., Drawing]] = {
    configs.CGN: _draw_digits,
    configs.CGN_IMAGENET: _draw_imagenet,
}
