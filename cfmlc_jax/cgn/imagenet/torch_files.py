"""Files of PyTorch with the weights of counterfactual generators, as counterfactual_generative_networks keeps them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn.imagenet import build
from cfmlc_jax.cgn.imagenet.system import generator_variables
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators.imagenet_cgn import TORCH_PARTS
from cfmlc_jax.torch_weights import cgn, files

# Networks that belong to a run, by the start of a key that they alone have.
_ALONE = {"generator.gen_z.": "biggan", "stage1.rebnconvin.": "u2net"}


def is_generator(weights: Mapping[str, Any]) -> bool:
    """Whether these are the weights of a counterfactual generator for ImageNet.

    Raises:
        InputError: they are those of a network that a run takes as a file.
    """
    for start, name in _ALONE.items():
        if any(key.startswith(start) for key in weights):
            raise InputError(
                f"these are the weights of a part of a generator for ImageNet; a run of configs/cgn_imagenet.py takes "
                f"their file as --config.weights.{name}=FILE"
            )
    return any(key.startswith(f"{TORCH_PARTS['target']}.") for key in weights)


def from_torch(config, weights: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Meta and "model" item of a checkpoint.

    Args:
        config: validated, of system "cgn_imagenet".
        weights: arrays by key.

    Raises:
        InputError: a configuration of another system; left over, missing or mis-shaped entries, which are listed.
    """
    if configs.system(config) != configs.CGN_IMAGENET:
        raise InputError(f"--config is of system {configs.system(config)!r}; give configs/cgn_imagenet.py")
    parts = build.create(config)
    model = build.from_torch(parts.generator, cgn.from_torch(parts.generator, weights))
    return {"config": configs.to_json(config), "class_names": list(parts.class_names)}, model


def write(path: Path, checkpoint: Path, config) -> None:
    """Write the state_dict of a generator for ImageNet, as the reference reads it.

    Args:
        path: a new file.
        checkpoint: of the generator.
        config: its configuration.

    Raises:
        InputError: PyTorch is missing, or a file cannot be read or written.
    """
    torch = files.import_torch(f"to write {path}")
    files.save(torch, path, files.tensors(torch, to_torch(checkpoint, config)))


def to_torch(checkpoint: Path, config) -> dict[str, np.ndarray]:
    """The state_dict of a generator for ImageNet, the inverse of `from_torch`.

    Args:
        checkpoint: of the generator.
        config: its configuration.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    parts = build.create(config)
    model = checkpoints.read_model(checkpoint, build.model_item(config, parts))
    return cgn.to_torch(parts.generator, generator_variables(model))
