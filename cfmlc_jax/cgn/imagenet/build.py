"""Builds the parts of a counterfactual generator for ImageNet from a configuration. The parts do not see it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfmlc_jax import installed
from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn.imagenet.system import ImageNetSystem, Objective, initial_model, stacked
from cfmlc_jax.data import class_names as names
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.generators import imagenet_cgn
from cfmlc_jax.models.generators.vgg16 import VGG16Features
from cfmlc_jax.torch_weights import cgn
from cfmlc_jax.torch_weights import files as weight_files


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts that training and generation share.

    mesh: the devices.
    generator: draws images.
    features: compares them.
    image_size: side of the images, pixels.
    class_names: in label order.
    """

    mesh: jax.sharding.Mesh
    generator: imagenet_cgn.ImageNetGenerator
    features: VGG16Features
    image_size: int
    class_names: tuple[str, ...]


def create(config, devices: Sequence[jax.Device] | None = None) -> Parts:
    """The parts of a configuration's networks.

    Args:
        config: validated.
        devices: of the mesh; None: those of the run.

    Raises:
        InputError: the file of class names does not fit, or mesh.fsdp does not divide the devices.
    """
    size = imagenet_cgn.SIZES[config.generator.size]
    dtype = catalogue.compute_dtype(config.generator.dtype)
    return Parts(
        mesh=meshes.create(config.mesh.fsdp, devices),
        generator=imagenet_cgn.create(size, config.generator.interpolation, dtype),
        features=VGG16Features(size.features, dtype),
        image_size=size.image_size,
        class_names=_class_names(config.generator.class_names, size.num_classes),
    )


def system(config, parts: Parts, measure: Callable | None = None) -> ImageNetSystem:
    """The system that the engine trains.

    Args:
        config: validated.
        parts: of the same configuration.
        measure: as in `ImageNetSystem`.

    Raises:
        InputError: the devices do not divide a micro-batch.
    """
    meshes.check_batch("train.micro_batch", config.train.micro_batch, parts.mesh.size)
    optim = config.optim
    return ImageNetSystem(
        parts.generator,
        objective(config, parts),
        adam({name: optim[name] for name in mechanisms.MECHANISMS}, b1=optim.b1, b2=optim.b2),
        truncation=config.train.truncation,
        micro_batches=config.train.micro_batches,
        measure=measure,
    )


def objective(config, parts: Parts) -> Objective:
    """The losses of a configuration."""
    fields = ("l1", "style", "entropy", "mask", "text", "background")
    return Objective(**{name: config.loss[name] for name in fields}, features=parts.features)


def adam(learning_rates: Mapping[str, float], *, b1: float, b2: float) -> optax.GradientTransformation:
    """Three Adams in one, for parameters of the mechanisms that are stacked along their leading axis.

    Adam treats every number alone, so that only the learning rates tell the mechanisms apart.

    Args:
        learning_rates: {mechanism: rate}.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares.
    """
    rates = np.array([learning_rates[name] for name in mechanisms.MECHANISMS], np.float32)

    def scaled(updates, params):
        return jax.tree.map(lambda x: -jnp.asarray(rates).reshape(-1, *[1] * (x.ndim - 1)) * x, updates)

    return optax.chain(optax.scale_by_adam(b1=b1, b2=b2), optax.stateless(scaled))


def model_item(config, parts: Parts) -> dict[str, Any]:
    """The shapes and shardings of a checkpoint's "model" item."""
    initial = jax.eval_shape(lambda key: initial_model(parts.generator, key), jax.random.key(config.seed))
    return meshes.with_shardings(initial, parts.mesh)


def require_weights(weights) -> None:
    """Raise unless every network's initial weights are known.

    Args:
        weights: section `weights` of the configuration.

    Raises:
        InputError: a file is missing.
    """
    if weights.random:
        return
    missing = [name for name in ("biggan", "u2net", "vgg16") if not weights[name]]
    if weights.cgn:
        missing = [name for name in missing if name == "vgg16"]
    if missing:
        raise InputError(
            f"{', '.join(f'config.weights.{name}' for name in missing)}: give the files of the published weights "
            f"({installed.document('generators.md')} says where they are); config.weights.random=True tries the program without"
        )


def load(weights, parts: Parts, learned: Mapping[str, Any]) -> dict[str, Any]:
    """`learned` with the weights of files: the BigGANs, the U²-Net and the features.

    Args:
        weights: section `weights` of the configuration.
        parts: of the same configuration.
        learned: the initial state, for the shardings.

    Raises:
        InputError: a file cannot be read, or holds other weights.
    """
    read = {}
    if weights.cgn:
        read = from_torch(parts.generator, _converted(parts.generator, weights.cgn))
    elif weights.biggan:
        biggan = _converted(parts.generator.biggan(), weights.biggan)
        u2net = _converted(parts.generator.u2net_alone(), weights.u2net)
        read = stacked({"target": biggan, **mechanisms.same_for_all(biggan), "u2net": u2net})
    if weights.vgg16:
        read["features"] = {"params": _converted(parts.features, weights.vgg16)["params"]}
    placed = {
        name: jax.tree.map(lambda leaf, array: jax.device_put(array, leaf.sharding), learned[name], tree)
        for name, tree in read.items()
    }
    return {**learned, **placed}


def from_torch(generator: imagenet_cgn.ImageNetGenerator, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The "model" item of variables {"params", "batch_stats"} of `ImageNetGenerator`."""
    return stacked(
        {
            name: {collection: tree[name] for collection, tree in variables.items()}
            for name in variables["params"]
        }
    )


def _converted(module: nn.Module, path: str):
    try:
        return cgn.from_torch(module, weight_files.read_torch(path_of(path)).weights)
    except InputError as error:
        message = str(error)
        raise (error if path in message else InputError(f"{path}: {message}")) from error


def _class_names(place, num_classes):
    """The names in a file, or the classes' numbers."""
    if not place:
        return tuple(f"class {i}" for i in range(num_classes))
    read = names.class_names(place)
    if len(read) != num_classes:
        raise InputError(
            f"config.generator.class_names {place} names {len(read)} classes; the generator has {num_classes}"
        )
    return tuple(read)
