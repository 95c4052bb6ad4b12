"""Batch, layer and instance norms with PyTorch's arithmetic."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers.broadcasting import along_last
from cfmlc_jax.models.layers.images import IMAGES


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
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = _group_means(wide.mean(axis=axes), groups)
    # In two passes: E[x²] − E[x]² loses the digits of a variance far below the squared mean.
    var = _group_means(jnp.square(wide - along_last(mean[0], x)).mean(axis=axes), groups)
    return mean, var, x.size // x.shape[-1] * (images // groups)


def _group_means(value, groups):
    """Means of the images' values, over this image's group and over the first group: [c] -> two [c]."""
    if groups == 1:
        joint = jax.lax.pmean(value, IMAGES)
        return joint, joint
    # Gather all images' values on every device, a few kilobytes. Collectives within groups of images
    # (axis_index_groups) are not defined under a map, and a group may span devices.
    every = jax.lax.all_gather(value, IMAGES)
    means = every.reshape(groups, -1, *value.shape).mean(axis=1)
    own = jax.lax.axis_index(IMAGES) * groups // every.shape[0]
    return means[own], means[0]


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
        # In two passes, as in `_batch_statistics`.
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * along_last(scale, x) + along_last(bias, x)
        return y.astype(self.dtype)


def instance_norm(x, epsilon: float = 1e-5):
    """Each image's channels normalised to mean 0 and variance 1 over its pixels: [b, h, w, c] -> [b, h, w, c].

    Statistics are at least float32; the result has the type of x.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(axis=(1, 2), keepdims=True)
    variance = jnp.square(centred).mean(axis=(1, 2), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)
