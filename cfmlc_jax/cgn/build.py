"""Builds the parts of a counterfactual generative network from a configuration. The parts do not see the configuration."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

from cfmlc_jax.cgn.system import DigitsSystem, Objective, initial_model
from cfmlc_jax.data.views.crops import PaddedCrop
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import critics, mnist
from cfmlc_jax.models.generators.vgg16 import FEATURES, VGG16Features
from cfmlc_jax.torch_weights import cgn
from cfmlc_jax.torch_weights import files as weight_files

_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts that training, generation and evaluation share.

    mesh: the devices.
    generator: draws images.
    critic: scores them in training.
    reading: how real images are read.
    transform: from records to views; digits are neither cropped nor mirrored.
    """

    mesh: jax.sharding.Mesh
    generator: mnist.MnistGenerator
    critic: nn.Module
    reading: Reading
    transform: PaddedCrop


def create(config, num_classes: int, devices: Sequence[jax.Device] | None = None) -> Parts:
    """The parts of a configuration's network for k classes.

    Args:
        config: validated.
        num_classes: k.
        devices: of the mesh; None: those of the run.
    """
    return Parts(
        mesh=meshes.create(config.mesh.fsdp, devices),
        generator=mnist.create(num_classes, config.generator),
        critic=critics.CRITICS[config.critic.name](num_classes, config.critic),
        reading=Reading(
            process=jax.process_index(),
            processes=jax.process_count(),
            threads=config.data.threads,
            workers=config.data.workers,
            devices=jax.local_device_count(),
        ),
        transform=PaddedCrop(size=mnist.SIZE, flip=False),
    )


def system(config, parts: Parts, measure: Callable | None) -> DigitsSystem:
    """The system that the engine trains.

    Args:
        config: validated.
        parts: of the same configuration.
        measure: as in `DigitsSystem`.
    """
    features = VGG16Features(FEATURES[config.loss.features])
    objective = Objective(config.loss.entropy, tuple(config.loss.style), features, config.loss.sides)
    optimizers = {"generator": _adam(config.optim), "critic": _adam(config.optim)}
    return DigitsSystem(
        parts.generator,
        parts.critic,
        objective,
        optimizers,
        ema_decay=config.optim.ema_decay,
        measure=measure,
    )


def model_item(config, parts: Parts) -> dict[str, Any]:
    """The shapes and shardings of a checkpoint's "model" item."""
    initial = jax.eval_shape(lambda key: initial_model(parts.generator, key), jax.random.key(config.seed))
    return meshes.with_shardings(initial, parts.mesh)


def vgg16_features(path: Path, abstract) -> Any:
    """The variables of VGG-16's features from a PyTorch or safetensors file of torchvision's VGG-16.

    Args:
        path: of the file.
        abstract: their shapes and shardings.

    Raises:
        InputError: the file is missing, cannot be read, or holds other weights.
    """
    if not path.is_file():
        raise InputError(
            f"config.loss.features_from: {path} is no file; download {_VGG16} and set this field to its path"
        )
    variables = cgn.from_torch(VGG16Features(), weight_files.read_torch(path).weights)
    return jax.tree.map(
        lambda leaf, array: jax.device_put(array, leaf.sharding), abstract, {"params": variables["params"]}
    )


def require_every_class(source) -> None:
    """Raise unless every class has an image.

    Raises:
        InputError: a class has none.
    """
    missing = [name for name, count in zip(source.class_names, source.labels.sum(axis=0)) if count == 0]
    if missing:
        raise InputError(
            f"train has no image of {', '.join(missing)}; the generator needs images of every class: complete the data"
        )


def _adam(optim):
    adam = optax.adam(optim.learning_rate, b1=optim.b1, b2=optim.b2)
    return optax.chain(optax.clip_by_global_norm(optim.clip), adam) if optim.clip else adam
