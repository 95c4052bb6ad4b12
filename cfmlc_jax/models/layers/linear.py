"""Affine maps of the last axis."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.models.layers.broadcasting import along_last
from cfmlc_jax.models.layers.images import mapped_over_images
from cfmlc_jax.models.layers.initialisers import uniform_fan_in, uniform_within
from cfmlc_jax.models.layers.matrix_products import Rows, product


class Linear(nn.Module):
    """Affine map with PyTorch's initialisation, in float32: [..., d] -> [..., features].

    Weights and biases are initialised uniformly within ±1/√d. The computation is float32 or wider because
    logits decide rankings, and it is a negligible share of the work.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        uniform = uniform_within(d**-0.5)
        kernel = self.param("kernel", uniform, (d, self.features))
        bias = self.param("bias", uniform, (self.features,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x @ kernel + along_last(bias, x)


class Dense(nn.Module):
    """Affine map computed in `dtype`: [..., d] -> [..., features].

    For hidden layers; logits use `Linear`.

    Attributes:
        bias_init: initialiser of the bias; None: PyTorch's, uniform within ±1/√d.
    """

    features: int
    use_bias: bool = True
    kernel_init: Any = uniform_fan_in
    bias_init: Any = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (d, self.features))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        # Outside the map over images `product` would merge the leading axes, of which the first may be sharded.
        y = product(Rows(), x, kernel) if mapped_over_images() else x @ kernel
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init or uniform_within(d**-0.5), (self.features,))
        return y + along_last(bias.astype(self.dtype), y)
