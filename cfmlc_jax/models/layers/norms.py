"""Batch, layer, instance and response norms with PyTorch's arithmetic."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.broadcasting import along_last
from cfmlc_jax.models.layers.images import IMAGES, devices_of_images, on_all_devices


class BatchNorm(nn.Module):
    """Batch norm over images, views and pixels, as in PyTorch: [b, h, w, c] -> [b, h, w, c].

    Statistics are float32 and computed over the mapped axis `IMAGES` too. The running variance is the
    unbiased one (Flax's own layer keeps the biased one). To train, the layer must be mapped over `IMAGES`,
    unless `mapped` is False.

    Attributes:
        mapped: x has the views of one image. False: x is the whole batch of images, with one group.
        frozen: training also uses the running statistics and does not update them.
        groups: number of groups of consecutive images with separate statistics, like the GPUs of a PyTorch
            run without synchronised norms. The running statistics follow the first group, because there the
            first process saves its own.

    Raises:
        InputError: the number of images is not divisible by `groups`.
    """

    momentum: float = 0.1  # share of the new batch in the running statistics, as in PyTorch
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
        y = x.astype(wide) * along_last(factor, x) + along_last(bias - mean * factor, x)
        return y.astype(self.dtype)


def _own_statistics(x):
    """As `_batch_statistics`, for x alone, without a mapped axis."""
    # In two passes: E[x²] − E[x]² loses the digits of a variance far below the squared mean.
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = wide.mean(axis=axes)
    var = jnp.square(wide - along_last(mean, x)).mean(axis=axes)
    return (mean, mean), (var, var), x.size // x.shape[-1]


def _batch_statistics(x, groups):
    """Mean and biased variance per channel, each for this image's group and for the first, and a group's size."""
    images = jax.lax.axis_size(IMAGES)
    if images % groups:
        raise InputError(
            f"a batch of {images} images is not divisible by the {groups} groups of the norms (norm_groups); "
            "change either"
        )
    own, first = remat.stored(_of_groups(_image_statistics(x), groups))
    # A mean is a pivot and a rest; see `_image_statistics`.
    (mean, var), (first_mean, first_var) = ((pivot + rest, var) for pivot, rest, var in (own, first))
    return (mean, first_mean), (var, first_var), x.size // x.shape[-1] * (images // groups)


def _image_statistics(x):
    """Pivot, mean minus pivot, and biased variance per channel of the views of an image: [v, h, w, c] -> [3, c].

    The pivot is the mean of every fourth row of pixels. Its squared distance from the mean is at most four times the
    variance, so that E[(x − pivot)²] − E[x − pivot]² has all digits of the variance but one bit or two, in one pass over x.
    Kept apart from the rest, it does not round that away either. The mean does not depend on the pivot; no gradient
    passes through it.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    pivot = jax.lax.stop_gradient(wide[:, ::4].mean(axis=axes))
    centred = wide - along_last(pivot, x)
    rest = centred.mean(axis=axes)
    return jnp.stack([pivot, rest, jnp.square(centred).mean(axis=axes) - jnp.square(rest)])


def _of_groups(statistics, groups):
    """The statistics of this image's group and of the first group, from those of each image: [3, c] -> two [3, c].

    All of them travel together, once; those of groups that end where devices do stay on their devices.
    """

    @custom_vmap
    def of_one_image(statistics):
        return statistics, statistics

    # A rule for the map over images, and not collectives along its axis: those are undefined within groups of
    # images (axis_index_groups), and would send means before they can compute variances.
    @of_one_image.def_vmap
    def of_images(images, batched, statistics):
        if not batched[0]:
            return (statistics, statistics), (False, False)
        devices, row = devices_of_images(), statistics.shape[1:]
        if groups % devices == 0:
            by_group = _combined(statistics.reshape(groups, -1, *row))
        else:
            # Each device combines its images, and sends the result, a few kilobytes, to all.
            parts = devices if devices % groups == images % devices == 0 else images
            sent = on_all_devices(_combined(statistics.reshape(parts, -1, *row)))
            by_group = on_all_devices(_combined(sent.reshape(groups, -1, *row)))
        if groups == 1:
            return (by_group[0], by_group[0]), (False, False)
        return (jnp.repeat(by_group, images // groups, axis=0), by_group[0]), (True, False)

    return of_one_image(statistics)


def _combined(statistics):
    """The statistics of equally large parts together: [g, n, 3, c] -> [g, 3, c].

    The variance is the mean of the parts' variances plus the variance of their means (Chan, Golub and LeVeque, 1983).
    """
    pivots, rests, variances = jnp.moveaxis(statistics, 2, 0)
    pivot = pivots[:, 0]
    rests += pivots - pivot[:, None]
    rest = rests.mean(axis=1)
    between = jnp.square(rests - rest[:, None]).mean(axis=1)
    return jnp.stack([pivot, rest, variances.mean(axis=1) + between], axis=1)


class LayerNorm(nn.Module):
    """Each position's features normalised to mean 0 and variance 1, then scaled: [..., d] -> [..., d].

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
        # In two passes, as in `_own_statistics`.
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * along_last(scale, x) + along_last(bias, x)
        return y.astype(self.dtype)


class ResponseNorm(nn.Module):
    """Each channel of a map scaled by its share of the response, and the map added: [b, h, w, c] -> [b, h, w, c].

    The response of a channel is its norm over the pixels; a share of 1 is the mean over the channels (global
    response normalisation; Woo et al., CVPR 2023). Norms are at least float32; the result has the type `dtype`.
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = jnp.square(wide).sum(axis=(1, 2), keepdims=True)
        # The gradient of a norm of 0 is 0, as in PyTorch, and not undefined.
        response = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
        share = response / (response.mean(axis=-1, keepdims=True) + self.epsilon)
        y = wide + wide * share * along_last(scale, x) + along_last(bias, x)
        return y.astype(self.dtype)


def instance_norm(x, epsilon: float = 1e-5):
    """Each image's channels normalised to mean 0 and variance 1 over its pixels: [b, h, w, c] -> [b, h, w, c].

    Statistics are at least float32; the result has the type of x.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(centred).mean(axis=(1, 2), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
