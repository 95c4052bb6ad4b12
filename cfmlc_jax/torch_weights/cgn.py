"""Strict conversion of weights of counterfactual generative networks, from PyTorch to our variables and back.

The modules are those of `models.generators`, and the classifiers; the tables of names are beside them. Entries
of a file that a module does not need (the end of VGG-16) are listed in `_KINDS`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import cnn_mnist, resnet
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.generators import biggan_deep, critics, imagenet_cgn, mnist, u2net, vgg16
from cfmlc_jax.models.heads import linear, mechanisms
from cfmlc_jax.models.torch_names import Table
from cfmlc_jax.torch_weights import strict

# The networks by name, with their published sizes.
MODULES: dict[str, nn.Module] = {
    "cgn_mnist": mnist.MnistGenerator(),
    "cgn_mnist_linear_critic": critics.LinearCritic(),
    "cgn_mnist_conv_critic": critics.ConvCritic(),
    "cgn_mnist_classifier": catalogue.create_model("cnn_mnist", 10, image_size=32),
    "cgn_invariant_ensemble": catalogue.create_model("resnet50", 1000, image_size=224, head="mechanisms"),
    "cgn_imagenet": imagenet_cgn.ImageNetGenerator(),
    "biggan_deep": biggan_deep.BigGANDeep(),
    "u2net": u2net.U2Net(),
    "vgg16_features": vgg16.VGG16Features(),
}


class _Kind(NamedTuple):
    """How a kind of module is converted.

    table: our dotted paths -> PyTorch's.
    takes_train: whether the module is called with `train`.
    unused: regular expression of keys that are not read.
    size: side of the views of a classifier, pixels; the other modules have an example of their inputs.
    """

    table: Table
    takes_train: bool = True
    unused: str = r"(?!)"
    size: int = 0


# By type; classifiers by the types of their backbone and their head.
_KINDS: dict[type | tuple[type, type], _Kind] = {
    mnist.MnistGenerator: _Kind(mnist.TORCH),
    critics.LinearCritic: _Kind(critics.LINEAR_TORCH),
    critics.ConvCritic: _Kind(critics.CONV_TORCH),
    (cnn_mnist.MnistCNN, linear.LinearHead): _Kind(
        (
            *((rf"backbone\.{module}", path) for module, path in cnn_mnist.TORCH.modules),
            (r"head\.whole", cnn_mnist.TORCH.head),
        ),
        size=32,
    ),
    (resnet.ResNet, mechanisms.MechanismHead): _Kind(mechanisms.RESNET_TORCH, size=64),
    vgg16.VGG16Features: _Kind(vgg16.TORCH, takes_train=False, unused=vgg16.TORCH_UNUSED),
    biggan_deep.BigGANDeep: _Kind(biggan_deep.TORCH),
    u2net.U2Net: _Kind(u2net.TORCH),
    imagenet_cgn.ImageNetGenerator: _Kind(()),  # by the tables of its networks
}


class GeneratorSizes(NamedTuple):
    """Sizes of a generator of digits, the fields of `mnist.MnistGenerator`."""

    num_classes: int
    latent: int
    ngf: int


# Entries by which a generator of digits is recognised: the labels' embedding, and the first layer of the shape.
_EMBEDDING, _FIRST_LAYER = "label_emb.weight", "f_shape.0.weight"


def is_digits_generator(state_dict: Mapping[str, Any]) -> bool:
    """Whether these are the weights of a generator of digits."""
    return {_EMBEDDING, _FIRST_LAYER} <= set(state_dict)


def digits_generator_sizes(state_dict: Mapping[str, Any]) -> GeneratorSizes:
    """The sizes of a generator of digits, by the shapes of its weights.

    Raises:
        InputError: the shapes are none of such a generator.
    """
    embedding, first = (np.shape(state_dict[key]) for key in (_EMBEDDING, _FIRST_LAYER))
    if len(embedding) == len(first) == 2 and first[1] > embedding[0] and first[0] and first[0] % 128 == 0:
        return GeneratorSizes(embedding[0], first[1] - embedding[0], first[0] // 128)
    raise InputError(
        f"{_EMBEDDING} {list(embedding)} and {_FIRST_LAYER} {list(first)} are of no generator of digits: wanted "
        "[k, k] and [128 ngf, latent + k]"
    )


@functools.cache
def entries(module: nn.Module) -> tuple[strict.Entry, ...]:
    """All variables of a module with their PyTorch keys.

    Raises:
        InputError: the module has no table of names.
    """
    if isinstance(module, imagenet_cgn.ImageNetGenerator):
        return _entries_of_networks(module)
    kind = _kind(module)
    init = functools.partial(module.init, train=False) if kind.takes_train else module.init
    inputs = (jnp.zeros((1, 1, kind.size, kind.size, 3)),) if kind.size else module.example()
    return strict.entries(jax.eval_shape(init, jax.random.key(0), *inputs), kind.table)


def _entries_of_networks(module):
    """The entries of the four BigGANs, of which one is traced, and of the U²-Net."""
    biggan, u2net = entries(module.biggan()), entries(module.u2net_alone())
    return tuple(
        entry._replace(
            path=(entry.path[0], ours, *entry.path[1:]),
            key=f"{theirs}.{entry.key}",
        )
        for ours, theirs in imagenet_cgn.TORCH_PARTS.items()
        for entry in (u2net if ours == "u2net" else biggan)
    )


def from_torch(module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of a module, as float32 numpy arrays.

    Args:
        module: a module of `models.generators`, or one of the classifiers, with the sizes of the weights.
        state_dict: arrays or CPU tensors by key.

    Raises:
        InputError: left over, missing or mis-shaped entries, which are listed; or a module without a table of
            names.
    """
    what = f"the weights of this {_name(_type(module))}"
    return strict.to_variables(what, entries(module), state_dict, unused=_kind(module).unused)


def to_torch(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state_dict of a module's variables, the inverse of `from_torch`, with batch counters of 0.

    Raises:
        InputError: variables of another module, which are listed; or a module without a table of names.
    """
    what = f"the variables of this {_name(_type(module))}"
    return strict.to_state_dict(what, entries(module), variables)


def _kind(module):
    if _type(module) not in _KINDS:
        known = ", ".join(map(_name, _KINDS))
        raise InputError(f"{_name(_type(module))} has no table of PyTorch's names; give one of {known}")
    return _KINDS[_type(module)]


def _type(module):
    """The key of a module in `_KINDS`, whether or not it is there."""
    return (type(module.backbone), type(module.head)) if isinstance(module, Classifier) else type(module)


def _name(kind):
    return kind.__name__ if isinstance(kind, type) else " with ".join(part.__name__ for part in kind)
