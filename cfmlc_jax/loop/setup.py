"""From a configuration to everything a run works with. Nothing below sees the configuration."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cfmlc_jax.causal.views import Cell, cells
from cfmlc_jax.data import build as data
from cfmlc_jax.data.pipeline import Reading
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.checks import require_disjoint, summary
from cfmlc_jax.data.transforms import ToViews
from cfmlc_jax.errors import InputError
from cfmlc_jax.loop import mesh as meshes
from cfmlc_jax.loop import method as methods
from cfmlc_jax.loop import step as steps
from cfmlc_jax.loop.state import TrainState, plan
from cfmlc_jax.models import build as models
from cfmlc_jax.optim import build as optim
from cfmlc_jax.optim import frozen as frozen_parameters


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
    views_of: dict[str, ToViews]

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


def create_setup(config, num_classes: int) -> Setup:
    """Everything but data and optimiser.

    Raises:
        InputError: a batch that the devices do not divide, an image size that does not suit the
            model, …
    """
    meshes.check_batch("train.batch_size", config.train.batch_size)
    meshes.check_batch("evaluate.batch_size", config.evaluate.batch_size)
    method = methods.create(config.method, pooling=config.model.pooling, **config.loss)
    return Setup(
        mesh=meshes.create(config.mesh.fsdp),
        model=models.create(
            config.model.name,
            num_classes,
            attention=config.model.attention,
            image_size=config.views.image_size,
            head=config.model.head,
            groups=config.model.groups,
            cells=config.model.cells,
            background=config.model.pooling == "exclusive",
            norm_groups=config.model.norm_groups,
            dtype=jnp.dtype(config.model.dtype),
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
        ),
        views_of={
            "train": _views(config, method.train_patches, config.views.augment),
            "evaluate": _views(config, method.predict_patches, False),
        },
    )


def open_sources(config, splits, say: Callable[[str], None]) -> dict[str, Source]:
    """The splits' sources, each said to the user; training data is in no other split.

    Raises:
        InputError: a source that cannot be read, or an image in train and in another split.
    """
    sources = {}
    for split in dict.fromkeys(splits):
        sources[split] = data.source(config.data, split)
        say(summary(split, sources[split]))
        if not sources[split].labels.any():
            raise InputError(
                f"{split}: no image has any of the classes; there is nothing to learn or to score"
            )
    for split in sources:
        if "train" in sources and split != "train":
            require_disjoint(sources["train"], sources[split])
    return sources


def steps_per_epoch(config, source: Source) -> int:
    """Whole batches in an epoch.

    Raises:
        InputError: not one.
    """
    steps = len(source) // config.train.batch_size
    if steps == 0:
        raise InputError(
            f"train has {len(source)} images, fewer than config.train.batch_size {config.train.batch_size}; "
            "make the batch smaller"
        )
    return steps


def optimizer(config, total_steps: int, frozen: Sequence[str] = ()):
    """AdamW with one cycle over the run, which leaves frozen parameters (`Classifier.frozen`) alone."""
    return optim.adamw_one_cycle(
        max_lr=config.optim.learning_rate,
        total_steps=total_steps,
        pct_start=config.optim.pct_start,
        weight_decay=config.optim.weight_decay,
        trainable=functools.partial(frozen_parameters.trainable, frozen=frozen) if frozen else None,
    )


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
    size = config.views.patch_size if used and config.views.patch_size else None
    return methods.Patches(tuple(config.views.grids), config.views.overlap, size)


def _views(config, patches: bool, augment: bool) -> ToViews:
    return ToViews(
        size=config.views.image_size,
        # Cells of a map need no views of their own, and patches of another size are cut on the device.
        grid=config.views.grids if patches and not (config.model.cells or config.views.patch_size) else None,
        overlap=config.views.overlap,
        augment=augment,
        exif=config.data.exif,
    )
