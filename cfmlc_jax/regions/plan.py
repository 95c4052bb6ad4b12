"""What the run of a classifier of regions needs (`engine.plan`). No records are read."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cfmlc_jax.data.regions import lvis
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.plan import TRAINING, Workload, count_parameters, training_step
from cfmlc_jax.errors import InputError
from cfmlc_jax.regions import build


def workload(config, devices: Sequence[jax.Device], *, classes: int | None, images: int | None) -> Workload:
    """The training step and the length of a run.

    Args:
        config: validated.
        devices: of the mesh.
        classes: their number; None: of config.data.version.
        images: of training; None: of that version.

    Raises:
        InputError: the number of classes is unknown, or the devices do not divide a batch.
    """
    version, train, model = config.data.version, config.train, config.model
    classes = classes or lvis.CATEGORIES.get(version)
    images = images or lvis.TRAINING_IMAGES.get(version)
    if classes is None:
        raise InputError(
            f"config.data.version is {version!r}, so that the number of classes is unknown; give --classes"
        )
    steps = None if images is None else images // train.batch_size
    if steps == 0:
        raise InputError(f"--images={images} is fewer than config.train.batch_size {train.batch_size}")
    parts = build.create(config, classes, devices)
    sharding = meshes.batch_sharding(parts.mesh)
    shape = (train.batch_size, train.regions, model.stages)
    batch = {
        "features": jax.ShapeDtypeStruct((*shape, *model.features), jnp.float16, sharding=sharding),
        "labels": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),
    }
    abstract, step = training_step(
        build.system(config, parts, steps or 1),
        batch,
        mesh=parts.mesh,
        seed=config.seed,
        log_every=train.log_every,
    )
    return Workload(
        mesh=parts.mesh,
        batch=f"{train.batch_size} images of {train.regions} regions in {model.stages} stage{'s' * (model.stages > 1)}, {classes} classes",
        parameters={"heads": count_parameters(abstract.learned["variables"]["params"])},
        programs={TRAINING: step},
        images_per_step=train.batch_size,
        images=images,
        steps_per_epoch=steps,
        epochs=train.epochs,
    )
