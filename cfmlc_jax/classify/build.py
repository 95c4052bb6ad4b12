"""From a configuration to everything a run works with. Nothing below sees the configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import config as configs
from cfmlc_jax import losses
from cfmlc_jax.causal.views import Cell, cells
from cfmlc_jax.classify import method as methods
from cfmlc_jax.classify import step as steps
from cfmlc_jax.data import build as data
from cfmlc_jax.data.pipeline import Reading
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.balanced import Balanced
from cfmlc_jax.data.sources.checks import require_disjoint, require_one_label, require_same_classes, summary
from cfmlc_jax.data.views import transforms
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import TrainState, plan
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue as models
from cfmlc_jax.models.heads.pooled import tau_norm
from cfmlc_jax.optim import build as optim
from cfmlc_jax.optim import frozen as frozen_parameters
from cfmlc_jax.optim import schedules

_MOST_STEPS = 2**31 - 1  # the step is an int32


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's parts, built from its configuration and the number of classes.

    patches: {"train", "evaluate"} -> where the method's patches come from.
    views_of: {"train", "evaluate"} -> the transform of records.
    """

    mesh: Any
    model: Any
    method: methods.Method
    patches: dict[str, methods.Patches]
    reading: Reading
    views_of: dict[str, Transform]

    def sample_shape(self, purpose: str) -> tuple[int, ...]:
        """[1, v, s, s, 3] of the views that "train" or "evaluate" gives the model."""
        to_views = self.views_of[purpose]
        return (1, to_views.num_views, to_views.size, to_views.size, 3)

    def grids(self) -> tuple[int, ...] | None:
        """Patches along one side, for each scale; None where the method predicts without patches."""
        if not self.method.predict_patches:
            return None
        if self.model.cells is None:
            grid = self.patches["evaluate"].grid
            return (grid,) if isinstance(grid, int) else tuple(grid)
        init = functools.partial(self.model.init_with_output, train=False)
        whole = jax.ShapeDtypeStruct(self.sample_shape("evaluate"), jnp.float32)
        outputs, _ = jax.eval_shape(init, jax.random.key(0), whole)
        return (math.isqrt(outputs.cells[0].shape[2]),)

    def cells(self) -> list[Cell] | None:
        """Boxes of the patches in a whole view, pixels; None where there are none."""
        grids = self.grids()
        if grids is None:
            return None
        overlap = 0.0 if self.model.cells is not None else self.patches["evaluate"].overlap
        return cells(self.views_of["evaluate"].size, grids, overlap)


def create_setup(config, num_classes: int, class_counts: Any = None) -> Setup:
    """Everything but data and optimiser.

    Args:
        config: validated.
        num_classes: k.
        class_counts: training images [k] of each class, for training by a loss that weighs them.

    Raises:
        InputError: a batch that the devices do not divide, an image size that does not suit the
            model, …
    """
    meshes.check_batch("train.batch_size", config.train.batch_size)
    meshes.check_batch("evaluate.batch_size", config.evaluate.batch_size)
    method = _method(config, class_counts)
    return Setup(
        mesh=meshes.create(config.mesh.fsdp),
        model=models.normalised(
            models.create(
                config.model,
                num_classes,
                config.views.image_size,
                config.patches if configs.branches(config) != "none" else None,
            ),
            config.data.normalise,
        ),
        method=method,
        patches={
            "train": _patches(config, method.train_patches),
            "evaluate": _patches(config, method.predict_patches),
        },
        reading=Reading(
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=config.data.threads,
            workers=config.data.workers,
            skip=config.data.on_error == "skip",
        ),
        views_of={
            "train": _views(config, method.train_patches, True),
            "evaluate": _views(config, method.predict_patches, False),
        },
    )


def require_model(config) -> None:
    """Raise unless the model can be built and trained on these devices, as far as that needs no data.

    Raises:
        InputError: as `create_setup`; a map of cells or parameters to be frozen that the model does
            not have, or nothing that is trained.
    """
    setup = create_setup(config, num_classes=2)
    # Shapes take seconds of a large model: only where a field names parts of it.
    if not (configs.patch_map(config) or config.model.frozen or models.HEADS[config.model.head].has_mean):
        return
    _, abstract = state_plan(config, setup, optax.identity())
    frozen = setup.model.frozen
    if not any(jax.tree.leaves(frozen_parameters.trainable(abstract.variables["params"], frozen))):
        raise InputError(
            f"config.model.frozen {tuple(config.model.frozen)} leaves no parameter to train; take some out"
        )


def open_sources(config, splits, say: Callable[[str], None]) -> dict[str, Source]:
    """The splits' sources, each said to the user; training data is in no other split.

    Raises:
        InputError: a source that cannot be read, an image in train and in another split, other classes
            than train's, or images of several labels for a loss of one.
    """
    sources = {}
    for split in dict.fromkeys(splits):
        sources[split] = data.source(config.data, split)
        say(summary(split, sources[split]))
        if not sources[split].labels.any():
            raise InputError(
                f"{split}: no image has any of the classes; there is nothing to learn or to score"
            )
        if config.task == "single_label":
            require_one_label(split, sources[split], config.loss.name)
    for split in sources:
        if "train" in sources and split != "train":
            require_same_classes(sources["train"], sources[split])
            require_disjoint(sources["train"], sources[split])
    return sources


def drawn(config, source: Source) -> Source:
    """What an epoch goes through: the training split, or its classes equally often.

    Raises:
        InputError: classes to be balanced of which one has no image.
    """
    return Balanced(source) if config.data.balanced else source


def steps_per_epoch(config, source: Source) -> int:
    """Whole batches in an epoch.

    Raises:
        InputError: not one, or more than can be counted in all epochs.
    """
    steps = len(source) // config.train.batch_size
    if steps * config.train.epochs > _MOST_STEPS:
        raise InputError(
            f"config.train.epochs {config.train.epochs} of {steps} steps are more than {_MOST_STEPS} steps; "
            "give fewer epochs, or a larger train.batch_size"
        )
    if steps == 0:
        raise InputError(
            f"train has {len(source)} images, fewer than config.train.batch_size {config.train.batch_size}; "
            "make the batch smaller"
        )
    return steps


def optimizer(config, total_steps: int, frozen: Sequence[str] = ()):
    """The run's optimiser and schedule, which leaves frozen parameters (`Classifier.frozen`) alone."""
    trainable = functools.partial(frozen_parameters.trainable, frozen=frozen) if frozen else None
    return optim.create(config.optim, optim.Length(config.train.epochs, total_steps), trainable)


def mean_rate(config, steps_in_epoch: int) -> Callable | None:
    """Step -> share mu of the mean feature that it keeps; None for heads without such a feature."""
    momentum = config.model.cosine.momentum
    if not models.HEADS[config.model.head].has_mean:
        return None
    if momentum != "schedule":
        return lambda step: momentum
    return schedules.per_step(
        schedules.moving_average_rates(optim.epoch_rates(config.optim, config.train.epochs)), steps_in_epoch
    )


def as_evaluated(config, model: dict) -> dict:
    """The "model" item of a checkpoint as it predicts: with `model.dot_product.tau_norm`, if there is one."""
    tau = config.model.dot_product.tau_norm
    if not tau:
        return model
    return model | {name: _tau_normed(model[name], tau) for name in ("variables", "average")}


def _tau_normed(variables, tau):
    flat = flatten_dict(variables, keep_empty_nodes=True)
    place = ("params", "head", "whole", "kernel")
    return unflatten_dict(flat | {place: tau_norm(flat[place], tau)})


def state_plan(config, setup: Setup, transformation) -> tuple[Callable, TrainState]:
    """How the state begins, and its shapes and shardings (`state.plan`)."""
    return plan(
        setup.model,
        transformation,
        setup.sample_shape("train"),
        tallied=steps.tallied(setup.method.loss_names),
        seed=config.seed,
        mesh=setup.mesh,
    )


def _patches(config, used: bool) -> methods.Patches:
    patches = config.patches
    size = patches.size if used and patches.source == "device" else None
    return methods.Patches(tuple(patches.grids), patches.overlap, size)


def _method(config, class_counts) -> methods.Method:
    per_entry = losses.create(config.loss, class_counts)
    # Of several labels summed over images and classes, as in the reference: Adam does not mind the scale.
    reduce = jnp.mean if config.task == "single_label" else jnp.sum
    return methods.with_loss(
        config.method,
        lambda logits, labels: reduce(per_entry(logits, labels)),
        pooling=config.patches.pooling,
    )


def _views(config, patches: bool, training: bool) -> Transform:
    return transforms.create(
        config.views,
        training=training,
        exif=config.data.exif,
        # Cells of a map need no views of their own, and the device cuts its patches itself.
        grid=config.patches.grids if patches and config.patches.source == "host" else None,
        overlap=config.patches.overlap,
    )
