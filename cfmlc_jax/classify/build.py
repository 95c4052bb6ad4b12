"""Builds the parts of a classifier from a configuration. The parts themselves do not see the configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cfmlc_jax import config as configs
from cfmlc_jax import losses
from cfmlc_jax.causal import decorrelation
from cfmlc_jax.causal.decorrelation import Decorrelation
from cfmlc_jax.causal.patches import POOLINGS, Pooling
from cfmlc_jax.causal.views import Box
from cfmlc_jax.classify import invariant, pat
from cfmlc_jax.classify import patching as patchings
from cfmlc_jax.classify.deconfound import MeanFeature
from cfmlc_jax.classify.masking import Masking
from cfmlc_jax.classify.removing import Removal
from cfmlc_jax.classify.update import ClassifierSystem, Objective, Validation, initial_model
from cfmlc_jax.data import build as data
from cfmlc_jax.data import pipeline
from cfmlc_jax.data.mixing import Generated
from cfmlc_jax.data.sources import MechanismSource, Source
from cfmlc_jax.data.sources.balanced import Balanced
from cfmlc_jax.data.sources.checks import require_disjoint, require_one_label, require_same_classes, summary
from cfmlc_jax.data.sources.counterfactuals import open_records
from cfmlc_jax.data.sources.partial import Hidden
from cfmlc_jax.data.views import transforms
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.data.weighting import Weighting
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of
from cfmlc_jax.models import catalogue as models
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.optim import build as optim
from cfmlc_jax.optim import frozen as frozen_parameters
from cfmlc_jax.optim import schedules

COUNTERFACTUALS = "counterfactuals"  # the name of the generated records among the splits
_MOST_STEPS = 2**31 - 1  # the step is an int32


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a classifier that training and evaluation share.

    mesh: the devices.
    model: the classifier.
    method: whether it trains and predicts with patches.
    pooling: of patch evidence to one logit per class.
    patching: where the patches come from, by "train" and "evaluate".
    reading: how images are read.
    transforms: from records to views, by "train" and "evaluate".
    """

    mesh: jax.sharding.Mesh
    model: Classifier
    method: pat.Method
    pooling: Pooling
    patching: dict[str, patchings.Whole]
    reading: Reading
    transforms: dict[str, Transform]

    def sample_shape(self, purpose: str) -> tuple[int, ...]:
        """The shape [1, v, s, s, 3] of the host's views for "train" or "evaluate"."""
        transform = self.transforms[purpose]
        return (1, transform.num_views, transform.size, transform.size, 3)

    def boxes(self) -> list[Box] | None:
        """The boxes of the patches, in pixels of a whole view of evaluation; None without patches."""
        return self.patching["evaluate"].boxes(self.transforms["evaluate"].size)


def create(config, num_classes: int, devices: Sequence[jax.Device] | None = None) -> Parts:
    """The parts of a configuration's classifier with k classes.

    Args:
        config: validated.
        num_classes: k.
        devices: of the mesh; None: those of the run.

    Raises:
        InputError: for example, the devices do not divide a batch size, or the model does not support the
            image size.
    """
    mesh = meshes.create(config.mesh.fsdp, devices)
    for section in ("train", "evaluate"):
        meshes.check_batch(f"{section}.batch_size", config[section].batch_size, mesh.size)
    method = pat.METHODS[config.method]
    pooling = POOLINGS[config.patches.pooling]._replace(weight=config.patches.weight)
    model = models.normalised(
        models.create(
            config.model,
            num_classes,
            config.views.image_size,
            config.patches if configs.branches(config) != "none" else None,
            config.train.micro_batches,
        ),
        config.data.normalise,
    )
    patching = {
        "train": _patching(config, model, method.train_patches),
        "evaluate": _patching(config, model, method.predict_patches),
    }
    return Parts(
        mesh=mesh,
        model=model,
        method=method,
        pooling=pooling,
        patching=patching,
        reading=Reading(
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=config.data.threads,
            workers=config.data.workers,
            devices=jax.local_device_count(),
            skip=config.data.on_error == "skip",
        ),
        transforms={
            "train": _transform(config, patching["train"], training=True),
            "evaluate": _transform(config, patching["evaluate"], training=False),
        },
    )


def system(
    config,
    parts: Parts,
    *,
    steps_per_epoch: int,
    class_counts,
    validation: Validation | None,
    partial: bool = False,
) -> ClassifierSystem:
    """The system that the engine trains.

    Args:
        config: validated.
        parts: of the same configuration.
        steps_per_epoch: for the schedules.
        class_counts: training images [k] of each class, for losses that weight classes by them.
        validation: after every epoch; None for a system that is never validated.
        partial: training labels may be unknown (−1), and then have no loss.

    Raises:
        InputError: `model.frozen` names parameters that the model does not have; or the devices do not divide a
            micro-batch.
    """
    _check_micro_batches(config, parts.mesh.size)
    return ClassifierSystem(
        parts.model,
        parts.sample_shape("train"),
        _objective(config, parts, class_counts, steps_per_epoch, partial),
        optimizer(config, steps_per_epoch * config.train.epochs, parts.model.frozen),
        ema_decay=config.optim.ema_decay,
        mean_feature=_mean_feature(config, steps_per_epoch),
        micro_batches=config.train.micro_batches,
        norm_groups=config.model.norm_groups if models.has_batch_statistics(config.model) else None,
        validation=validation,
    )


def _check_micro_batches(config, devices):
    number = config.train.micro_batches
    possible = configs.micro_batches(config, devices)
    if number not in possible:
        raise InputError(
            f"config.train.micro_batches {number} of train.batch_size {config.train.batch_size} are of "
            f"{config.train.batch_size // number} images, which the {devices} devices do not divide; "
            f"{configs.tried(possible)}"
        )


def initial(config, parts: Parts) -> dict[str, Any]:
    """The initial "model" item of a checkpoint, on the mesh."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, model_item(config, parts))
    return jax.jit(_initial(parts), out_shardings=shardings)(jax.random.key(config.seed))


def model_item(config, parts: Parts) -> dict[str, Any]:
    """The shapes and shardings of a checkpoint's "model" item."""
    return meshes.with_shardings(jax.eval_shape(_initial(parts), jax.random.key(config.seed)), parts.mesh)


def _initial(parts):
    return functools.partial(initial_model, parts.model, parts.sample_shape("train"))


def require_model(config) -> None:
    """Raise unless the model can be built and trained on these devices. Checks that need data are not made.

    Raises:
        InputError: as in `create` and `system`; the model does not have the map or the frozen parameters that the
            configuration names; or all parameters are frozen.
    """
    parts = create(config, num_classes=2)
    _check_micro_batches(config, parts.mesh.size)
    # Computing the shapes of a large model takes seconds, so do it only if a field names parts of the model.
    if not (configs.patch_map(config) or config.model.frozen or models.HEADS[config.model.head].has_mean):
        return
    params = model_item(config, parts)["variables"]["params"]
    if not any(jax.tree.leaves(frozen_parameters.trainable_mask(params, parts.model.frozen))):
        raise InputError(
            f"config.model.frozen {tuple(config.model.frozen)} leaves no parameter to train; remove some patterns"
        )


def open_sources(config, splits, print_line: Callable[[str], None]) -> dict[str, Source]:
    """The sources of the splits, by name. Prints a summary of each, and checks them against each other.

    Of the training split, `data.hide_labels` are hidden.

    Raises:
        InputError: a source cannot be read or has no labels; an image is in train and in another split; a
            split's classes differ from train's; or a single-label task has an image with several labels.
    """
    sources = {}
    for split in dict.fromkeys(splits):
        sources[split] = data.source(config.data, split)
        print_line(summary(split, sources[split]))
        if not (sources[split].labels > 0).any():
            raise InputError(
                f"{split}: no image has any of the classes; check the annotations and class names of this split"
            )
        if config.task == "single_label":
            require_one_label(split, sources[split], config.loss.name)
    for split in sources:
        if "train" in sources and split != "train":
            require_same_classes(sources["train"], sources[split])
            require_disjoint(sources["train"], sources[split])
    fields = config.data
    if "train" in sources and fields.hide_labels:
        sources["train"] = Hidden(
            sources["train"], fields.hide_labels, seed=fields.hide_seed, unmentioned=fields.unmentioned
        )
        print_line(summary("train with hidden labels", sources["train"]))
    return sources


def epoch_source(config, source: Source) -> Source:
    """The source of an epoch: the training split, oversampled by class if `data.balanced`.

    Raises:
        InputError: `data.balanced`, but a class has no image.
    """
    return Balanced(source) if config.data.balanced else source


def open_counterfactuals(config, source: Source, print_line: Callable[[str], None]) -> Generated | None:
    """The generated records of the training batches; None if there are none. Prints a summary of them.

    Args:
        config: validated.
        source: the training split.
        print_line: prints a line for the user.

    Raises:
        InputError: the records cannot be read, have other classes than the training split, or a size that the
            transform cannot take.
    """
    fields = config.data.counterfactuals
    per_batch = round(fields.share * config.train.batch_size)
    if not fields.path or not per_batch:
        return None
    records = open_records(path_of(fields.path, "config.data.counterfactuals.path"))
    print_line(summary(COUNTERFACTUALS, records))
    require_same_classes(source, records)
    if config.task == "single_label":
        require_one_label(COUNTERFACTUALS, records, config.loss.name)
    if config.method == "invariant" and not isinstance(records, MechanismSource):
        raise InputError(
            f"config.data.counterfactuals.path {fields.path} has scenes without mechanisms, but method 'invariant' has "
            "a head for each; set method to another, or give records of a network of single objects"
        )
    if config.views.transform == "padded_crop" and records.image_size != config.views.image_size:
        raise InputError(
            f"config.data.counterfactuals.path {fields.path} has images of {records.image_size} pixels, but "
            f"views.transform 'padded_crop' takes them at views.image_size, {config.views.image_size}; generate them at "
            "this size, or use a transform that resizes"
        )
    return Generated(records, per_batch, fields.from_epoch)


def weighting(config, train_source: Source) -> tuple[Weighting | None, Decorrelation | None]:
    """How often training draws each image, and what that does to the labels; None, None: once in each epoch."""
    decorrelate = config.data.decorrelate
    if decorrelate.effective_share == 1:
        return None, None
    result = decorrelation.decorrelate(train_source.labels, decorrelate.effective_share)
    return Weighting(result.weights, decorrelate.from_epoch), result


def steps_per_epoch(config, source: Source, generated: Generated | None = None) -> int:
    """The number of full batches in an epoch.

    Raises:
        InputError: there is none; or all epochs together have too many for an int32.
    """
    steps = pipeline.steps_per_epoch(source, config.train.batch_size, generated)
    if steps * config.train.epochs > _MOST_STEPS:
        raise InputError(
            f"config.train.epochs {config.train.epochs} of {steps} steps are more than {_MOST_STEPS} steps; "
            "give fewer epochs, or a larger train.batch_size"
        )
    if steps == 0 and generated is not None:
        raise InputError(
            f"train has {len(source)} images and {len(generated.source)} generated records, fewer than a batch of "
            f"config.train.batch_size {config.train.batch_size} needs; make the batch smaller"
        )
    if steps == 0:
        raise InputError(
            f"train has {len(source)} images, fewer than config.train.batch_size {config.train.batch_size}; "
            "make the batch smaller"
        )
    return steps


def optimizer(config, total_steps: int, frozen: Sequence[str] = ()):
    """The optax optimiser with its schedule; it does not change frozen parameters (`Classifier.frozen`)."""
    trainable_mask = functools.partial(frozen_parameters.trainable_mask, frozen=frozen) if frozen else None
    return optim.create(config.optim, optim.Length(config.train.epochs, total_steps), trainable_mask)


def _objective(config, parts, class_counts, steps_per_epoch, partial) -> Objective:
    """What the method minimises."""
    options = {
        "patching": parts.patching["train"],
        "pooling": parts.pooling,
        "weight": _weight(config, class_counts),
        "masking": _masking(config, parts),
        "removal": _removal(config, parts, steps_per_epoch),
    }
    if config.method == "invariant":
        per_image = losses.create(config.loss, class_counts)
        return invariant.InvariantObjective(loss=per_image, names=invariant.LOSSES, **options)
    return Objective(
        loss=loss(config, class_counts, partial=partial),
        names=pat.loss_names(parts.method),
        distil=config.patches.distil,
        **options,
    )


def _masking(config, parts) -> Masking | None:
    """Which patches of training images are masked; None: none."""
    if not config.train.mask_rate:
        return None
    return Masking(config.train.mask_rate, config.train.mask_with, parts.patching["train"])


def _removal(config, parts, steps_per_epoch) -> Removal | None:
    """Which classes are removed from training images; None: none."""
    removal = config.train.removal
    if not removal.rate:
        return None
    from_step = (removal.from_epoch - 1) * steps_per_epoch
    return Removal(removal.rate, from_step, parts.patching["train"], parts.pooling, removal.exchange)


def _mean_feature(config, steps_per_epoch):
    momentum = config.model.cosine.momentum
    if not models.HEADS[config.model.head].has_mean:
        return None
    if momentum != "schedule":
        return MeanFeature(lambda step: momentum)
    rates = optim.epoch_rates(config.optim, config.train.epochs)
    return MeanFeature(schedules.per_step(schedules.moving_average_rates(rates), steps_per_epoch))


def loss(config, class_counts, *, partial: bool = False) -> Callable:
    """The loss as a function of logits and labels, two [b, k] -> scalar; unknown labels count nothing if `partial`."""
    per_entry = losses.create(config.loss, class_counts, partial=partial)
    # As in the reference, multi-label losses are summed over images and classes, here over the known entries. Adam is
    # invariant to the scale.
    reduce = jnp.mean if config.task == "single_label" else jnp.sum
    return lambda logits, labels: reduce(per_entry(logits, labels))


def _weight(config, class_counts) -> Callable | None:
    """The weight of a batch's loss in the mean of several; None if losses are summed."""
    return losses.batch_weight(config.loss, class_counts) if config.task == "single_label" else None


def _patching(config, model, used: bool) -> patchings.Whole:
    """Where the patches come from; `Whole` if they are not used."""
    patches = config.patches
    grid, overlap = tuple(patches.grids), patches.overlap
    if not used:
        return patchings.Whole(grid, overlap)
    if patches.source == "map":
        return patchings.MapCells(grid, overlap, side=_map_side(model, config.views.image_size))
    if patches.source == "device":
        return patchings.DeviceCrops(grid, overlap, size=patches.size)
    return patchings.HostViews(grid, overlap)


def _map_side(model, image_size):
    """The number of cells along one side of the classifier's map."""
    whole = jax.ShapeDtypeStruct((1, 1, image_size, image_size, 3), jnp.float32)
    init = functools.partial(model.init_with_output, train=False)
    outputs, _ = jax.eval_shape(init, jax.random.key(0), whole)
    return math.isqrt(outputs.cells[0].shape[2])


def _transform(config, patching: patchings.Whole, *, training: bool) -> Transform:
    return transforms.create(
        config.views,
        training=training,
        exif=config.data.exif,
        grid=patching.host_grid,
        overlap=config.patches.overlap,
    )
