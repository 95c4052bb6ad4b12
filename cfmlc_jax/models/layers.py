"""Layers with PyTorch's arithmetic, so that its weights and its training carry over."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# The mapped axis that joins batch statistics over images; see models.classifier.
IMAGES = "images"

# torchvision's: variance 2 / (outputs × kernel area).
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """Convolution with symmetric zero padding, without bias: [b, h, w, c] -> [b, h/stride, w/stride, features].

    A 1×1 convolution is a matrix product: XLA's CPU convolution takes two to three times as long
    for its weight gradient. The kernel is [kernel, kernel, c, features] either way.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_fan_out, shape).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.kernel == 1:
            return _pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=[(self.kernel // 2, self.kernel // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def _pointwise(x, kernel):
    """Matrix product of every pixel: [b, h, w, c], [c, d] -> [b, h, w, d]."""
    try:
        jax.lax.axis_size(IMAGES)
    except NameError:
        return _rows(x, kernel)
    return _rows_of_all_images(x, kernel)


def _rows(x, kernel):
    return _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


# Mapped over images, pixels are only more pixels. By JAX's own rule the weight gradient would be a
# product per image, [images, c, d], and then their sum.
_rows_of_all_images = jax.custom_batching.custom_vmap(_rows)


@_rows_of_all_images.def_vmap
def _map_rows(size, mapped, x, kernel):
    if mapped[1]:
        axes = tuple(0 if is_mapped else None for is_mapped in mapped)
        return jax.vmap(_rows, axes, axis_size=size)(x, kernel), True
    return _rows(x, kernel), True


@jax.custom_vjp
def _product(x, kernel):
    return x @ kernel


def _product_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _product_backward(saved, gradient):
    # JAX's own rule for the kernel multiplies gradientᵀ by x and transposes the result; XLA:CPU then
    # writes gradientᵀ to memory first, pixel by pixel: a fifth of a ResNet-101's training step.
    x, kernel = saved
    by_last, by_first = (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))
    return jax.lax.dot_general(gradient, kernel, by_last), jax.lax.dot_general(x, gradient, by_first)


_product.defvjp(_product_forward, _product_backward)


class BatchNorm(nn.Module):
    """Batch norm over images, views and pixels, as PyTorch counts: [b, h, w, c] -> [b, h, w, c].

    Statistics are float32 and joint over the mapped axis `IMAGES`; the running variance is the
    unbiased one (Flax's own layer keeps the biased). Must be mapped over `IMAGES` to train.

    Attributes:
        frozen: training, too, uses the running statistics and leaves them as they are.
    """

    momentum: float = 0.1  # share of the new batch in the running statistics, PyTorch's sense
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32
    frozen: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool):
        c = x.shape[-1]
        scale = self.param("scale", self.scale_init, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        if train and not self.frozen:
            mean, var, count = _batch_statistics(x)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide) * _last(factor, x) + _last(bias - mean * factor, x)
        return y.astype(self.dtype)


def _batch_statistics(x):
    """Mean and biased variance per channel, joint over IMAGES, and the number of values."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = jax.lax.pmean(wide.mean(axis=axes), IMAGES)
    # In two passes: the mean of squares loses the digits of a variance far below the mean's square.
    var = jax.lax.pmean(jnp.square(wide - _last(mean, x)).mean(axis=axes), IMAGES)
    return mean, var, x.size // x.shape[-1] * jax.lax.axis_size(IMAGES)


def _last(vector, x):
    """A [c] vector with the rank of x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def max_pool(x):
    """3×3 maximum at stride 2 with one pixel of padding: [b, h, w, c] -> [b, h/2, w/2, c].

    By rows, then by columns, of strided slices: the gradient of XLA's windowed maximum is several
    times slower on CPU.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        widths = [(0, 0)] * 4
        widths[axis] = (1, 1)
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        taps = [
            jax.lax.slice_in_dim(padded, offset, offset + size - (1 - size % 2), stride=2, axis=axis)
            for offset in range(3)
        ]
        x = jnp.maximum(jnp.maximum(taps[0], taps[1]), taps[2])
    return x


@jax.custom_vjp
def add_relu(x, y):
    """max(x + y, 0), the end of a residual block: two [...] -> [...].

    The same numbers, written so that a sum comes last: XLA:CPU computes a maximum anew wherever it
    is used, and with it the whole chain of blocks before it, but keeps a sum that is used twice.
    """
    return jnp.maximum(x, -y) + y


def _add_relu_forward(x, y):
    result = add_relu(x, y)
    return result, result


def _add_relu_backward(result, gradient):
    gradient = jnp.where(result > 0, gradient, 0)
    return gradient, gradient


add_relu.defvjp(_add_relu_forward, _add_relu_backward)


def space_to_depth(x, block: int):
    """Pixels of block × block squares as channels: [b, h, w, c] -> [b, h/block, w/block, block²·c].

    Output channel (dy·block + dx)·c + channel, as in TResNet.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def average_pool(x):
    """Mean over the pixels, at least float32: [b, h, w, c] -> [b, c].

    In half precision the mean of 14² values would cost a digit of every logit.
    """
    return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


class Linear(nn.Module):
    """Affine map with PyTorch's initialisation, in float32: [..., d] -> [..., features].

    Weights and biases start uniform within ±1/√d. float32 whatever comes in: logits decide
    rankings, and this is a vanishing share of the work.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        bound = d**-0.5

        def uniform(key, shape):
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        kernel = self.param("kernel", uniform, (d, self.features))
        bias = self.param("bias", uniform, (self.features,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (self.features,))
