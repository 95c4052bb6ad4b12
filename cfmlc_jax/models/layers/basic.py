"""Layers with PyTorch's arithmetic, so that its weights and its training carry over."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.errors import InputError

# The mapped axis that joins batch statistics over images; see models.classifier.
IMAGES = "images"

# torchvision's: variance 2 / (outputs × kernel area).
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's own: uniform within ±1/√(inputs of an output).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """Convolution with symmetric zero padding: [b, h, w, c] -> [b, h/stride, w/stride, features].

    A 1×1 convolution is a matrix product: XLA's CPU convolution takes two to three times as long
    for its weight gradient. So is one onto a map smaller than its kernel, of windows: there it takes
    thirty times as long (3×3 on 2×2 pixels). The kernel is [kernel, kernel, c / groups, features]
    either way.

    Attributes:
        padding: zeros on each side; None: half the kernel, so that stride 1 keeps the size.
        use_bias: with a bias, that starts as PyTorch's unless `bias_init` says otherwise.
        groups: of channels and features; each group's features see its own channels only.
        dilation: pixels from one tap of the kernel to the next.
    """

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32
    padding: int | None = None
    use_bias: bool = False
    kernel_init: Any = kaiming_fan_out
    groups: int = 1
    dilation: int = 1
    bias_init: Any = None

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        padding = self.dilation * (self.kernel // 2) if self.padding is None else self.padding
        y = convolve(x.astype(self.dtype), kernel, self.stride, padding, self.groups, self.dilation)
        if not self.use_bias:
            return y
        bias_init = self.bias_init or uniform_within(math.prod(shape[:-1]) ** -0.5)
        bias = self.param("bias", bias_init, shape[-1:])
        return y + _last(bias.astype(self.dtype), y)


def convolve(x, kernel, stride: int, padding: int, groups: int = 1, dilation: int = 1):
    """`Conv` without its parameters: [b, h, w, c], [side, side, c / groups, d] -> [b, h/stride, w/stride, d]."""
    side, features = kernel.shape[0], kernel.shape[-1]
    height, width = ((pixels + 2 * padding - side) // stride + 1 for pixels in x.shape[-3:-1])
    if groups == dilation == 1 and (side == 1 or max(height, width) < side):
        windows = _windows(x, side, stride, padding, (height, width))
        return _pointwise(windows, kernel.reshape(-1, features))
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        rhs_dilation=(dilation, dilation),
        feature_group_count=groups,
    )


def _windows(x, kernel, stride, padding, places):
    """The pixels under the kernel at every place: [b, h, w, c] -> [b, *places, kernel²·c], row by row."""
    x = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    height, width = (stride * (place - 1) + 1 for place in places)
    corners = [(i, j) for i in range(kernel) for j in range(kernel)]
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i, j in corners]
    return jnp.concatenate(shifted, axis=-1)


def _pointwise(x, kernel):
    """Matrix product of every pixel: [b, h, w, c], [c, d] -> [b, h, w, d]."""
    return _rows_of_all_images(x, kernel) if _over_images() else _rows(x, kernel)


def _features(x, kernel):
    """Matrix product of the last axis: [..., c], [c, d] -> [..., d].

    Beside the map over images the leading axes stay as they are: the first may be sharded.
    """
    return _rows_of_all_images(x, kernel) if _over_images() else x @ kernel


def _over_images() -> bool:
    try:
        jax.lax.axis_size(IMAGES)
    except NameError:
        return False
    return True


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
    unbiased one (Flax's own layer keeps the biased). Must be mapped over `IMAGES` to train, unless
    `mapped` is off.

    Attributes:
        mapped: x is one image's views. Off: x is the whole batch of images, and has one group.
        frozen: training, too, uses the running statistics and leaves them as they are.
        groups: of consecutive images, each with statistics of its own, as the GPUs of a PyTorch run
            without synchronised norms. The running ones follow the first group, as there the
            first process saves its own.

    Raises:
        InputError: images that the groups do not divide.
    """

    momentum: float = 0.1  # share of the new batch in the running statistics, PyTorch's sense
    epsilon: float = 1e-5
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32
    frozen: bool = False
    groups: int = 1
    mapped: bool = True

    @nn.compact
    def __call__(self, x, *, train: bool):
        c = x.shape[-1]
        scale = self.param("scale", self.scale_init, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        if train and not self.frozen:
            statistics = _batch_statistics(x, self.groups) if self.mapped else _own_statistics(x)
            (mean, first_mean), (var, first_var), count = statistics
            if not self.is_initializing():
                unbiased = first_var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (first_mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(wide) * _last(factor, x) + _last(bias - mean * factor, x)
        return y.astype(self.dtype)


def _own_statistics(x):
    """As `_batch_statistics`, of x alone."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axis=axes)
    var = jnp.square(wide - _last(mean, x)).mean(axis=axes)
    return (mean, mean), (var, var), x.size // x.shape[-1]


def _batch_statistics(x, groups):
    """Mean and biased variance per channel, each of this image's group and of the first, and a group's size."""
    images = jax.lax.axis_size(IMAGES)
    if images % groups:
        raise InputError(
            f"a batch of {images} images is not divisible by the {groups} groups of the norms (norm_groups)"
        )
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = _group_means(wide.mean(axis=axes), groups)
    # In two passes: the mean of squares loses the digits of a variance far below the mean's square.
    var = _group_means(jnp.square(wide - _last(mean[0], x)).mean(axis=axes), groups)
    return mean, var, x.size // x.shape[-1] * (images // groups)


def _group_means(value, groups):
    """Means of every image's [c] values, over the images of this one's group and over those of the first."""
    if groups == 1:
        joint = jax.lax.pmean(value, IMAGES)
        return joint, joint
    # All images' values on every device, a few kilobytes: collectives among some of the images
    # (axis_index_groups) are not defined under a map, and groups need not end where devices do.
    every = jax.lax.all_gather(value, IMAGES)
    means = every.reshape(groups, -1, *value.shape).mean(axis=1)
    own = jax.lax.axis_index(IMAGES) * groups // every.shape[0]
    return means[own], means[0]


def _last(vector, x):
    """A [c] vector with the rank of x."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def instance_norm(x, epsilon: float = 1e-5):
    """Each image's channels to mean 0 and variance 1 over its pixels: [b, h, w, c] -> [b, h, w, c].

    Statistics are at least float32, the result has the type of x.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(centred).mean(axis=(1, 2), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


def upsample_nearest(x):
    """Every pixel four times: [b, h, w, c] -> [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


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


def max_pool2(x, *, ceil: bool = False):
    """2×2 maximum at stride 2: [b, h, w, c] -> [b, h/2, w/2, c], halves rounded down, or up with `ceil`."""
    b, h, w, c = x.shape
    if ceil:
        x = jnp.pad(x, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)], constant_values=-jnp.inf)
    else:
        x = x[:, : h - h % 2, : w - w % 2]
    return x.reshape(b, x.shape[1] // 2, 2, x.shape[2] // 2, 2, c).max(axis=(2, 4))


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
        uniform = uniform_within(d**-0.5)
        kernel = self.param("kernel", uniform, (d, self.features))
        bias = self.param("bias", uniform, (self.features,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (self.features,))


class Dense(nn.Module):
    """Affine map computed in `dtype`: [..., d] -> [..., features].

    For the inside of networks; logits take `Linear`.

    Attributes:
        bias_init: None: PyTorch's, uniform within ±1/√d.
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
        y = _features(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init or uniform_within(d**-0.5), (self.features,))
        return y + _last(bias.astype(self.dtype), y)


def uniform_within(bound: float):
    """Initialiser: uniform within ±bound. PyTorch's biases start within ±1/√(inputs of an output)."""

    def uniform(key, shape):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return uniform


class LayerNorm(nn.Module):
    """Each position's features to mean 0 and variance 1, then scale and bias: [..., d] -> [..., d].

    Statistics are at least float32; the result has the type `dtype`.
    """

    epsilon: float = 1e-5  # PyTorch's
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        # In two passes, as in `_batch_statistics`.
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * _last(scale, x) + _last(bias, x)
        return y.astype(self.dtype)


class PatchEmbed(nn.Module):
    """Patches as features, a strided convolution and a norm: [b, h, w, c] -> [b, h/stride, w/stride, features]."""

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


# As vision transformers start: weights small, biases zero.
ViTDense = functools.partial(Dense, kernel_init=nn.initializers.normal(0.02), bias_init=nn.initializers.zeros)


class Mlp(nn.Module):
    """Two dense layers of every position, four times as wide between: [..., d] -> [..., d]."""

    activation: Any
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1]
        x = self.activation(ViTDense(4 * d, dtype=self.dtype, name="fc1")(x))
        return ViTDense(d, dtype=self.dtype, name="fc2")(x)


class DropPath(nn.Module):
    """Stochastic depth: in training a view's branch is 0 with probability `rate`, or 1/(1 − rate) times itself.

    [b, …] -> [b, …]. Draws from the random stream "dropout". (Huang et al., ECCV 2016)
    """

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        of_one_view = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=of_one_view)(x, deterministic=not train)
