"""Builds the parts of a classifier of regions from a configuration. The parts do not see it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from cfmlc_jax import config as configs
from cfmlc_jax import files, installed
from cfmlc_jax.data.regions import lvis
from cfmlc_jax.data.regions.records import RegionRecords
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads import box
from cfmlc_jax.optim import build as optimizers
from cfmlc_jax.optim.build import Length
from cfmlc_jax.regions.scoring import ScoredSplit, Scorer, Selecting, scored_split
from cfmlc_jax.regions.system import RegionSystem, initial_variables
from cfmlc_jax.results.predictions import WHOLE, Prediction, effect_of


@dataclass(frozen=True)
class Parts:
    """The parts that training and evaluation share.

    mesh: the devices.
    heads: of the cascade.
    sample_shape: [1, s, …] of features.
    rows: k + 1.
    """

    mesh: jax.sharding.Mesh
    heads: box.Cascade
    sample_shape: tuple[int, ...]
    rows: int


def create(config, num_classes: int, devices: Sequence[jax.Device] | None = None) -> Parts:
    """The parts of a configuration with k classes.

    Args:
        config: validated.
        num_classes: k.
        devices: of the mesh; None: those of the run.

    Raises:
        InputError: mesh.fsdp does not divide the devices.
    """
    model = config.model
    head = functools.partial(
        box.BoxHead,
        num_classes,
        epsilon=model.epsilon,
        hidden=model.hidden,
        num_heads=model.num_heads,
        tau=model.tau,
        gamma=model.gamma,
        classifier=model.classifier,
        shared_layers=model.shared_layers,
        boxes=False,
    )
    return Parts(
        mesh=meshes.create(config.mesh.fsdp, devices),
        heads=box.Cascade(head, model.stages),
        sample_shape=(1, model.stages, *model.features),
        rows=num_classes + 1,
    )


def system(
    config,
    parts: Parts,
    steps_per_epoch: int,
    measure: Callable[[Any, Callable[[], None]], dict[str, float]] | None = None,
) -> RegionSystem:
    """The system that the engine trains.

    Args:
        config: validated.
        parts: of the same configuration.
        steps_per_epoch: at least 1.
        measure: as in `RegionSystem`.

    Raises:
        InputError: the devices do not divide a batch.
    """
    meshes.check_batch("train.batch_size", config.train.batch_size, parts.mesh.size)
    epochs = config.train.epochs
    return RegionSystem(
        parts.heads,
        parts.sample_shape,
        parts.rows,
        optimizers.create(config.optim, Length(epochs, epochs * steps_per_epoch)),
        weights=tuple(config.loss.stages),
        counted=config.model.counted if has_effect(config) else None,
        momentum=config.model.momentum,
        measure=measure,
    )


def has_effect(config) -> bool:
    """Whether the heads have a mean feature, against which there is an effect."""
    return config.model.classifier != box.LINEAR


def predictions(config, alphas: Sequence[float]) -> list[Prediction]:
    """The factual prediction, and the effects of these strengths if the heads have a mean feature."""
    return [WHOLE, *(effect_of("feature", alpha) for alpha in alphas if has_effect(config))]


def scorer(config, parts: Parts, alphas: Sequence[float]) -> Scorer:
    """The scorer of `predictions`.

    Raises:
        InputError: the devices do not divide a batch.
    """
    meshes.check_batch("evaluate.batch_size", config.evaluate.batch_size, parts.mesh.size)
    return Scorer(
        parts.heads,
        predictions(config, alphas),
        exempt_background=config.effect.exempt_background,
        second_softmax=config.evaluate.second_softmax,
        batch_size=config.evaluate.batch_size,
        mesh=parts.mesh,
    )


def selecting(config) -> Selecting:
    """How detections are chosen."""
    evaluate = config.evaluate
    return Selecting(least=evaluate.score_threshold, overlap=evaluate.overlap, most=evaluate.most)


def model_item(config, parts: Parts) -> dict[str, Any]:
    """The shapes and shardings of a checkpoint's "model" item."""
    initial = jax.eval_shape(
        lambda key: {"variables": initial_variables(parts.heads, parts.sample_shape, key)},
        jax.random.key(config.seed),
    )
    return meshes.with_shardings(initial, parts.mesh)


def open_training(config) -> RegionRecords:
    """The records to train on.

    Raises:
        InputError: there is none, they cannot be read, they have other features than the model or no labels, or are fewer
            than a batch.
    """
    records = _open(config, "train")
    if not records.labelled:
        raise InputError(
            f"config.data.train {config.data.train} has no labels; write the records with labels"
        )
    if len(records) < config.train.batch_size:
        raise InputError(
            f"config.data.train {config.data.train} has {len(records)} images, fewer than config.train.batch_size "
            f"{config.train.batch_size}; make the batch smaller"
        )
    return records


def open_scored(config) -> ScoredSplit:
    """The split to score.

    Raises:
        InputError: its records or annotations cannot be read, or do not fit together.
    """
    records = _open(config, "val")
    if not config.data.annotations:
        raise InputError(
            "config.data.annotations is empty; give the JSON file with the boxes of val, as LVIS has it"
        )
    path = files.place(config.data.annotations, "config.data.annotations", bucket=True)
    return scored_split(lvis.read(path, config.data.version), records, f"config.data.val {config.data.val}")


def require_same_categories(one: Sequence[lvis.Category], other: Sequence[lvis.Category]) -> None:
    """Raise unless training and scored records have the same categories.

    Raises:
        InputError: names the first that differs.
    """
    if list(one) == list(other):
        return
    different = [(a, b) for a, b in zip(one, other) if a != b]
    words = (
        f"such as {different[0][0]} and {different[0][1]}" if different else f"{len(one)} and {len(other)}"
    )
    raise InputError(
        f"config.data.train and config.data.val have other categories ({words}); write both with the categories of one "
        "file"
    )


def _open(config, split) -> RegionRecords:
    folder = configs.field(config, f"data.{split}")
    if not folder:
        raise InputError(
            f"config.data.{split} is empty; give a folder of region features ({installed.document('long_tails.md')} says "
            "how to write one)"
        )
    records = RegionRecords(files.place(folder, f"config.data.{split}", bucket=True))
    wanted, version = tuple(config.model.features), config.data.version
    if records.shape != wanted:
        raise InputError(
            f"config.data.{split} {folder} has region features of shape {list(records.shape)}, config.model.features is "
            f"{list(wanted)}; set that field to {records.shape}, or give other records"
        )
    if records.stages != config.model.stages:
        raise InputError(
            f"config.data.{split} {folder} has {records.stages} stages, config.model.stages is {config.model.stages}; set "
            "that field and config.loss.stages, or give other records"
        )
    if version != lvis.OWN and len(records.categories) != lvis.CATEGORIES[version]:
        raise InputError(
            f"config.data.{split} {folder} has {len(records.categories):,} categories, LVIS {version} has "
            f"{lvis.CATEGORIES[version]:,}; set config.data.version"
        )
    return records
