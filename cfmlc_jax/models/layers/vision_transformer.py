"""Parts of vision transformers other than attention: the patch embedding, the MLP, and scales of branches."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.broadcasting import along_last
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.norms import LayerNorm, ResponseNorm


def gelu(x):
    """x·Φ(x), exactly, not by its usual approximation: [...] -> [...]."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x):
    """x·sigmoid(1.702·x), an approximation of GELU: [...] -> [...]."""
    return x * jax.nn.sigmoid(1.702 * x)


class PatchEmbed(nn.Module):
    """Patch embedding by a strided convolution and a norm: [b, h, w, c] -> [b, h/stride, w/stride, features].

    Attributes:
        use_bias: whether the convolution has a bias.
        norm: whether there is a norm.
    """

    features: int
    kernel: int
    stride: int
    padding: int
    dtype: Any = jnp.float32
    use_bias: bool = True
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        x = Conv(
            self.features,
            self.kernel,
            self.stride,
            self.dtype,
            padding=self.padding,
            use_bias=self.use_bias,
            kernel_init=uniform_fan_in,
            name="proj",
        )(x)
        if not self.norm:
            return x
        return LayerNorm(dtype=self.dtype, name="norm")(x)


# The initialisation of vision transformers: small weights, zero biases.
ViTDense = functools.partial(Dense, kernel_init=nn.initializers.normal(0.02), bias_init=nn.initializers.zeros)


class Mlp(nn.Module):
    """Two dense layers at every position, with 4·d features between: [..., d] -> [..., d].

    Attributes:
        response_norm: whether a `ResponseNorm` follows the activation, of maps [b, h, w, d].
    """

    activation: Any
    dtype: Any = jnp.float32
    response_norm: bool = False

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        x = self.activation(ViTDense(4 * d, dtype=self.dtype, name="fc1")(x))
        if self.response_norm:
            x = ResponseNorm(dtype=self.dtype, name="grn")(x)
        return ViTDense(d, dtype=self.dtype, name="fc2")(x)


class LayerScale(nn.Module):
    """x times a learned scale of each feature, small at first: [..., d] -> [..., d] (Touvron et al., ICCV 2021)."""

    initial: float

    @nn.compact
    def __call__(self, x):
        gamma = self.param("gamma", nn.initializers.constant(self.initial), (x.shape[-1],))
        return x * along_last(gamma.astype(x.dtype), x)
