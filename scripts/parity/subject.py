"""The model that is compared, and its weights for both sides."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import files, mlc_pat

# Names of our backbones in the checkout. Query2Label's prefix `q2l_` is the same on both sides.
BACKBONES = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "tresnet_l": "tresnetl",
    "tresnet_l_v2": "tresnetl_v2",
}
PLAIN = ("resnet101", "tresnet_l", "tresnet_l_v2")  # the checkout builds these without Query2Label


class Subject(NamedTuple):
    """The model that is compared.

    name, num_classes, attention: as in `cfmlc_jax.create_model`.
    state_dict: its weights by PyTorch's names.
    variables: the same weights as Flax variables.
    """

    name: str
    num_classes: int
    attention: str
    state_dict: dict[str, np.ndarray]
    variables: dict[str, Any]


def reference_name(name: str) -> str:
    """The checkout's name of one of our models.

    Raises:
        InputError: the checkout has no such model.
    """
    prefix = catalogue.QUERY2LABEL if name.startswith(catalogue.QUERY2LABEL) else ""
    backbone = name.removeprefix(prefix)
    known = [*PLAIN, *(catalogue.QUERY2LABEL + name for name in BACKBONES)]
    if name not in known:
        raise InputError(f"model {name!r} is not one that MLC-PAT builds: {', '.join(known)}")
    return prefix + BACKBONES[backbone]


def from_checkpoint(flags) -> Subject:
    """The model of --checkpoint.

    Raises:
        InputError: the file cannot be read, is of another model, or has a head that MLC-PAT does not have.
    """
    state_dict, _ = mlc_pat.unwrapped(files.read_torch(Path(flags.checkpoint)).weights)
    stored = mlc_pat.architecture(flags.model, state_dict)
    for flag, requested, actual in (
        ("classes", flags.classes, stored.num_classes),
        ("attention", flags.attention, stored.attention),
    ):
        if requested not in (None, actual):
            raise InputError(f"--{flag}={requested}, but {flags.checkpoint} has {actual}; leave the flag out")
    if stored.head not in ("linear", "query2label"):
        raise InputError(
            f"{flags.checkpoint} has the head {stored.head or 'none'}, which MLC-PAT does not build"
        )
    variables = mlc_pat.from_torch(flags.model, state_dict)
    return Subject(flags.model, stored.num_classes, stored.attention, state_dict, variables)


def at_random(flags, fill) -> Subject:
    """The model of --model with random weights; by default 80 classes and cross attention.

    Args:
        flags: the command's.
        fill: (number of classes, attention) -> a state_dict of random weights.
    """
    num_classes, attention = flags.classes or 80, flags.attention or "cross"
    state_dict = fill(num_classes, attention)
    variables = mlc_pat.from_torch(flags.model, state_dict)
    return Subject(flags.model, num_classes, attention, state_dict, variables)
