"""PyTorch weights of counterfactual generative networks to our variables and back. Strict.

The modules are those of `models.generators` and the digits' classifier; the names are tables beside
them. What a module's file holds beyond the module (the end of VGG-16) is listed in `_KINDS`.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import cnn_mnist
from cfmlc_jax.models.generators import biggan_deep, critics, imagenet_cgn, mnist, u2net, vgg16
from cfmlc_jax.models.torch_names import Table, from_torch_layout, to_torch_layout, torch_key
from cfmlc_jax.torch_weights.strict import require_same

_COUNTER = "num_batches_tracked"


class _Kind(NamedTuple):
    """table: dotted paths of ours -> PyTorch's. takes_train: the module is called with `train`. unused: keys not read."""

    table: Table
    takes_train: bool = True
    unused: str = r"(?!)"


_KINDS: dict[type, _Kind] = {
    mnist.MnistGenerator: _Kind(mnist.TORCH),
    critics.LinearCritic: _Kind(critics.LINEAR_TORCH),
    critics.ConvCritic: _Kind(critics.CONV_TORCH),
    cnn_mnist.MnistCNN: _Kind(cnn_mnist.TORCH),
    vgg16.VGG16Features: _Kind(vgg16.TORCH, takes_train=False, unused=vgg16.TORCH_UNUSED),
    biggan_deep.BigGANDeep: _Kind(biggan_deep.TORCH),
    u2net.U2Net: _Kind(u2net.TORCH),
    imagenet_cgn.ImageNetGenerator: _Kind(imagenet_cgn.TORCH),
}


class Entry(NamedTuple):
    """A variable of ours and where it is in PyTorch.

    path: collection, modules, name.
    key: in the state_dict.
    shape: of ours.
    torch_shape: with PyTorch's axes.
    """

    path: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]


@functools.cache
def entries(module: nn.Module) -> tuple[Entry, ...]:
    """All variables of a module, with their keys.

    Raises:
        InputError: a module without a table of names.
    """
    kind = _kind(module)
    init = functools.partial(module.init, train=False) if kind.takes_train else module.init
    abstract = jax.eval_shape(init, jax.random.key(0), *module.example())
    found = []
    for path, leaf in flatten_dict(abstract).items():
        torch_shape = to_torch_layout(path[-1], np.broadcast_to(np.float32(0), leaf.shape)).shape
        found.append(Entry(path, torch_key(path[1:], kind.table), leaf.shape, torch_shape))
    return tuple(found)


def from_torch(module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of a module, as float32 numpy arrays.

    Args:
        module: with the options of the weights; one of `models.generators` or `cnn_mnist`.
        state_dict: arrays or CPU tensors by key.

    Raises:
        InputError: left over, missing or mis-shaped entries, listed; a module without a table of names.
    """
    wanted = entries(module)
    unused = re.compile(_kind(module).unused)
    read = {k: v for k, v in state_dict.items() if not k.endswith(_COUNTER) and not unused.match(k)}
    require_same(
        f"the weights of this {type(module).__name__}",
        {entry.key: entry.torch_shape for entry in wanted},
        read,
    )
    variables = {
        entry.path: np.ascontiguousarray(
            from_torch_layout(entry.path[-1], np.asarray(state_dict[entry.key], np.float32))
        )
        for entry in wanted
    }
    return {"batch_stats": {}} | unflatten_dict(variables)


def to_torch(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state_dict of a module's variables, the inverse of `from_torch`. Counters of batches are 0.

    Raises:
        InputError: variables of another module, listed; a module without a table of names.
    """
    parts = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    leaves = flatten_dict(parts)
    wanted = entries(module)
    require_same(
        f"the variables of this {type(module).__name__}",
        {"/".join(entry.path): entry.shape for entry in wanted},
        {"/".join(path): leaf for path, leaf in leaves.items()},
    )
    state_dict = {}
    for entry in wanted:
        array = to_torch_layout(entry.path[-1], np.asarray(leaves[entry.path]))
        state_dict[entry.key] = np.ascontiguousarray(array)
        if entry.path[-1] == "var":
            state_dict[entry.key.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return state_dict


def _kind(module):
    if type(module) not in _KINDS:
        known = ", ".join(kind.__name__ for kind in _KINDS)
        raise InputError(f"{type(module).__name__} has no table of PyTorch's names; those that have: {known}")
    return _KINDS[type(module)]
