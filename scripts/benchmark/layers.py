"""Layers whose speed on CPUs depends on how they are written: gradients of one layer, ours."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.backbones import tresnet
from cfmlc_jax.models.heads.query2label import Query2Label
from cfmlc_jax.models.layers.convolution import Conv
from scripts.benchmark import inputs


class Blur(nn.Module):
    """TResNet's halving of a map."""

    @nn.compact
    def __call__(self, x):
        """[b, h, w, c] -> [b, h/2, w/2, c]."""
        return tresnet.blur(x)


class Decoder(nn.Module):
    """Query2Label's encoder, decoders and linear layer on a map of one view."""

    @nn.compact
    def __call__(self, x):
        """[b, h, w, d] -> [b, k]."""
        head = Query2Label(inputs.CLASSES, "none", name="head")
        return head({"map": x[:, None]}, train=False).whole


def _layer(name, channels):
    if name == "squeeze_excite":
        return tresnet.SqueezeExcite(channels // 4)
    if name == "depthwise":
        return Conv(channels, 7, groups=channels)
    return {"blur": Blur, "query2label": Decoder}[name]()


def step(name: str):
    """A function without arguments: gradients of a layer's sum of squares by its weights and its map.

    Args:
        name: a key of `inputs.LAYERS`.
    """
    x = jnp.asarray(inputs.layer_map(name))
    layer = _layer(name, x.shape[-1])
    variables = jax.jit(layer.init)(jax.random.key(0), x)

    @jax.jit
    def gradients(variables, x):
        return jax.grad(lambda *arguments: jnp.square(layer.apply(*arguments)).sum(), (0, 1))(variables, x)

    return functools.partial(gradients, variables, x)
