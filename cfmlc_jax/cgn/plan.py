"""What a generator's run needs, before its data is there (`engine.plan`)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cfmlc_jax.cgn import build
from cfmlc_jax.data.sizes import Size
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.plan import TRAINING, Workload, count_parameters, training_step
from cfmlc_jax.models.generators.mnist import SIZE


def workload(config, size: Size, devices: Sequence[jax.Device]) -> Workload:
    """The training step and the length of the run of a counterfactual generative network, without its classifiers.

    Args:
        config: validated.
        size: of the training split; with 0 images, the number of steps is unknown.
        devices: of the mesh.

    Raises:
        InputError: the devices do not divide the batch size.
    """
    parts, k, batch_size = (
        build.create(config, size.num_classes, devices),
        size.num_classes,
        config.train.batch_size,
    )
    meshes.check_batch("train.batch_size", batch_size, parts.mesh.size)
    sharding = meshes.batch_sharding(parts.mesh)
    batch = {
        "views": jax.ShapeDtypeStruct((batch_size, 1, SIZE, SIZE, 3), jnp.uint8, sharding=sharding),
        "labels": jax.ShapeDtypeStruct((batch_size, k), jnp.float32, sharding=sharding),
    }
    abstract, step = training_step(
        build.system(config, parts, None),
        batch,
        mesh=parts.mesh,
        seed=config.seed,
        log_every=config.train.log_every,
    )
    return Workload(
        mesh=parts.mesh,
        batch=f"{batch_size} real and {batch_size} generated images of {SIZE} px, {k} classes",
        parameters={
            name: count_parameters(abstract.learned[name]["params"]) for name in ("generator", "critic")
        },
        programs={TRAINING: step},
        images_per_step=batch_size,
        images=size.num_images or None,
        steps_per_epoch=size.num_images // batch_size if size.num_images else None,
        epochs=config.train.epochs,
    )
