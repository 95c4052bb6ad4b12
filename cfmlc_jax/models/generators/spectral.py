"""Layers with spectral norm: kernels are divided by their largest singular value (Miyato et al., ICLR 2018).

The value is estimated by one step of the power iteration per forward pass in training. The vectors u and v of
the iteration are variables; evaluation does not change them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.convolution import convolve
from cfmlc_jax.models.layers.initialisers import uniform_fan_in

_HIGHEST = jax.lax.Precision.HIGHEST


class SpectralDense(nn.Module):
    """Affine map with a spectrally normalised kernel: [b, d] -> [b, features]."""

    features: int
    use_bias: bool = False
    epsilon: float = 1e-4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        raw = self.param("raw_kernel", uniform_fan_in, (x.shape[-1], self.features))
        kernel = raw / _largest_singular_value(self, raw, train)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return y + _bias(self)[None] if self.use_bias else y


class SpectralConv(nn.Module):
    """Convolution at stride 1 with a spectrally normalised kernel: [b, h, w, c] -> [b, h, w, features]."""

    features: int
    kernel: int
    use_bias: bool = True
    epsilon: float = 1e-4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        raw = self.param("raw_kernel", uniform_fan_in, shape)
        kernel = raw / _largest_singular_value(self, as_matrix(raw), train)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), 1, self.kernel // 2)
        return y + _bias(self)[None, None, None] if self.use_bias else y


def as_matrix(kernel):
    """The matrix of a kernel [d, features] or [h, w, c, features] whose largest singular value counts: [h·w·c, features].

    Rows are in PyTorch's order (channel, row, column), so that its vector v can be used.
    """
    return kernel if kernel.ndim == 2 else kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])


def unit(x, epsilon: float = 1e-4):
    """x divided by its length, or by epsilon if that is larger: [d] -> [d]."""
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)


def _largest_singular_value(layer, matrix, train):
    """Estimate v·W·u for a matrix W [c, d], with the layer's vectors v [c] and u [d]; gradients flow through W only."""

    def unit_vector(size):
        return unit(jax.random.normal(layer.make_rng("params"), (size,)), layer.epsilon)

    c, d = matrix.shape
    u = layer.variable("batch_stats", "u", unit_vector, d)
    v = layer.variable("batch_stats", "v", unit_vector, c)
    if train and not layer.is_initializing():
        constant = jax.lax.stop_gradient(matrix)
        v.value = unit(jnp.matmul(constant, u.value, precision=_HIGHEST), layer.epsilon)
        u.value = unit(jnp.matmul(v.value, constant, precision=_HIGHEST), layer.epsilon)
    return jnp.vdot(v.value, jnp.matmul(matrix, u.value, precision=_HIGHEST), precision=_HIGHEST)


def _bias(layer):
    return layer.param("bias", nn.initializers.zeros, (layer.features,)).astype(layer.dtype)
