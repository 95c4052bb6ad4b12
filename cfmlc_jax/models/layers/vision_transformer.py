"""Parts of vision transformers other than attention: the patch embedding and the MLP."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.norms import LayerNorm


class PatchEmbed(nn.Module):
    """Patch embedding by a strided convolution and a norm: [b, h, w, c] -> [b, h/stride, w/stride, features]."""

    features: int
    kernel: int
    stride: int
    padding: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = Conv(
            self.features,
            self.kernel,
            self.stride,
            self.dtype,
            padding=self.padding,
            use_bias=True,
            kernel_init=uniform_fan_in,
            name="proj",
        )(x)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


# The initialisation of vision transformers: small weights, zero biases.
ViTDense = functools.partial(Dense, kernel_init=nn.initializers.normal(0.02), bias_init=nn.initializers.zeros)


class Mlp(nn.Module):
    """Two dense layers at every position, with 4·d features between: [..., d] -> [..., d]."""

    activation: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        x = self.activation(ViTDense(4 * d, dtype=self.dtype, name="fc1")(x))
        return ViTDense(d, dtype=self.dtype, name="fc2")(x)
