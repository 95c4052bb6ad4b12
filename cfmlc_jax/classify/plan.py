"""What a classifier's run needs, before its data is there (`engine.plan`)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.classify import build, scoring
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.classify.scoring import Score
from cfmlc_jax.data.sizes import Size
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.plan import (
    TRAINING,
    Memory,
    Program,
    Workload,
    bytes_on_device,
    count_parameters,
    measure,
    training_step,
)

VALIDATION, EVALUATION = "validation", "evaluation"


def workload(config, size: Size, devices: Sequence[jax.Device]) -> Workload:
    """The programs and the length of a classifier's run.

    Args:
        config: validated.
        size: of the training split; with 0 images, the number of steps is unknown.
        devices: of the mesh.

    Raises:
        InputError: as in `build.create` and `build.system`.
    """
    k = size.num_classes
    parts = build.create(config, k, devices)
    images = _images_in_epoch(config, size)
    steps = images // _read_per_step(config) if images else None
    system = build.system(
        config,
        parts,
        steps_per_epoch=steps or 1,
        class_counts=np.full(k, max(size.num_images // k, 1)),
        validation=None,
    )
    abstract, step = training_step(
        system,
        _training_batch(config, parts, k),
        mesh=parts.mesh,
        seed=config.seed,
        log_every=config.train.log_every,
    )
    views, side = parts.sample_shape("train")[1:3]
    return Workload(
        mesh=parts.mesh,
        batch=f"{config.train.batch_size} images × {views} view{'s' * (views > 1)} of {side} px, {k} classes",
        parameters={config.model.name: count_parameters(abstract.learned["variables"]["params"])},
        programs={TRAINING: step, **_scoring_programs(config, parts, abstract)},
        images_per_step=config.train.batch_size,
        images=images or None,
        steps_per_epoch=steps,
        epochs=config.train.epochs,
    )


def step_memory(config, parts: Parts, system, k: int, steps_per_epoch: int) -> Memory:
    """The memory of the training step of a run. Compiles it, or reads it from the cache."""
    _, step = training_step(
        system,
        _training_batch(config, parts, k),
        mesh=parts.mesh,
        seed=config.seed,
        log_every=min(config.train.log_every, steps_per_epoch),
    )
    return measure(step).memory


def scoring_memory(config, parts: Parts, score: Score) -> Memory:
    """The memory of the program that scores a batch. Compiles it likewise."""
    model = build.model_item(config, parts)
    return measure(Program(lambda: _scoring(config, parts, model, score))).memory


def _images_in_epoch(config, size):
    """The images that an epoch goes through; 0: unknown."""
    if config.data.balanced:
        return (size.most or 0) * size.num_classes
    return size.num_images


def _read_per_step(config):
    """The images of a batch that count for the length of an epoch: the real ones, if there are any."""
    return config.train.batch_size - _generated(config) or config.train.batch_size


def _generated(config):
    """Generated records in a batch."""
    fields = config.data.counterfactuals
    return round(fields.share * config.train.batch_size) if fields.path else 0


def _training_batch(config, parts: Parts, k: int) -> dict:
    """Shapes of a batch of `data.pipeline.train_batches`."""
    size, sharding = config.train.batch_size, meshes.batch_sharding(parts.mesh)

    def array(shape, dtype):
        return jax.ShapeDtypeStruct((size, *shape), dtype, sharding=sharding)

    batch = {
        "views": array(parts.sample_shape("train")[1:], jnp.uint8),
        "labels": array((k,), jnp.float32),
    }
    if _generated(config):
        batch["counterfactual"] = array((), jnp.bool_)
        if config.method == "invariant":
            batch["mechanisms"] = {name: array((), jnp.int32) for name in MECHANISMS}
    return batch


def _scoring_programs(config, parts: Parts, abstract) -> dict[str, Program]:
    """The programs that score a batch, after an epoch and after training."""
    learned, kinds = abstract.learned, tuple(config.effect.kinds)
    state, variables = bytes_on_device(abstract), bytes_on_device(learned["variables"])
    about = f"{config.evaluate.batch_size} images"
    validation = scoring.for_validation(config, parts)
    evaluation = scoring.for_evaluation(config, parts)
    programs = {
        VALIDATION: Program(
            lambda: _scoring(config, parts, learned, validation), about, held=state - variables
        )
    }
    if kinds:
        # The best checkpoint is read beside the last state.
        programs[EVALUATION] = Program(
            lambda: _scoring(config, parts, learned, evaluation),
            f"{about}, TDE {' and '.join(kinds)}",
            held=state + bytes_on_device(learned["average"]),
        )
    return programs


def _scoring(config, parts: Parts, model, score: Score) -> jax.stages.Traced:
    """The program that scores a batch of evaluation."""
    views = scoring.views_of(parts, config.evaluate.batch_size)
    return score.trace(model["variables"], model["mean_colour"], views)
