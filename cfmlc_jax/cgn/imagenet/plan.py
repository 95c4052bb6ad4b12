"""What the run of a generator for ImageNet needs (`engine.plan`). It has no data."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cfmlc_jax.cgn.imagenet import build
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.plan import TRAINING, Workload, count_parameters, training_step


def workload(config, devices: Sequence[jax.Device]) -> Workload:
    """The training step and the length of a run.

    Args:
        config: validated.
        devices: of the mesh.

    Raises:
        InputError: the devices do not divide a micro-batch.
    """
    parts = build.create(config, devices)
    images = config.train.micro_batch * config.train.micro_batches
    sharding = meshes.batch_sharding(parts.mesh)
    batch = {"position": jax.ShapeDtypeStruct((images,), jnp.int32, sharding=sharding)}
    abstract, step = training_step(
        build.system(config, parts),
        batch,
        mesh=parts.mesh,
        seed=config.seed,
        log_every=config.train.log_every,
    )
    learned = abstract.learned
    return Workload(
        mesh=parts.mesh,
        batch=f"{config.train.micro_batches} micro-batches of {config.train.micro_batch} at {parts.image_size} px, "
        f"{len(parts.class_names)} classes",
        parameters={
            "trained": count_parameters(learned["mechanisms"]["params"]),
            "fixed": sum(
                count_parameters(learned[name]["params"]) for name in ("target", "u2net", "features")
            ),
        },
        programs={TRAINING: step},
        images_per_step=images,
        images=images * config.train.steps_per_epoch,
        steps_per_epoch=config.train.steps_per_epoch,
        epochs=config.train.epochs,
    )
