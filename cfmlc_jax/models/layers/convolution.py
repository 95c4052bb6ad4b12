"""Convolutions of images, channels last."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.broadcasting import along_last
from cfmlc_jax.models.layers.initialisers import kaiming_fan_out, uniform_within
from cfmlc_jax.models.layers.matrix_products import Depthwise, Tiles, Windows, product


class Conv(nn.Module):
    """Convolution with symmetric zero padding: [b, h, w, c] -> [b, h/stride, w/stride, features].

    The kernel is [kernel, kernel, c / groups, features].

    Attributes:
        padding: zeros on each side; None: half the kernel, so that stride 1 keeps the size.
        use_bias: whether there is a bias; it is initialised as in PyTorch unless `bias_init` is set.
        groups: number of groups of channels; the features of a group see only that group's channels.
        dilation: distance in pixels between taps of the kernel.
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
        return y + along_last(bias.astype(self.dtype), y)


def convolve(x, kernel, stride: int, padding: int, groups: int = 1, dilation: int = 1):
    """Convolution by a given kernel: [b, h, w, c], [side, side, c / groups, d] -> [b, h/stride, w/stride, d].

    On CPUs three cases are computed as matrix products: 1×1 kernels, windows that tile the map, and maps smaller
    than the kernel (as a product of windows). XLA's CPU convolution takes two to three times as long for the weight
    gradient of the first and thirty times as long for the last (3×3 on 2×2 pixels). Depthwise convolutions that keep
    the map's size are sums of shifted maps there (`matrix_products.Depthwise`). Other platforms convolve.
    """
    side = kernel.shape[0]
    if groups == x.shape[-1] == kernel.shape[-1] and stride == dilation == 1 and side == 2 * padding + 1 > 1:
        return product(Depthwise(side), x, kernel)
    if (
        groups == dilation == 1
        and side == stride > 1
        and not padding
        and not any(n % side for n in x.shape[-3:-1])
    ):
        return product(Tiles(side), x, kernel)
    height, width = ((pixels + 2 * padding - side) // stride + 1 for pixels in x.shape[-3:-1])
    if groups == dilation == 1 and (side == 1 or max(height, width) < side):
        return product(Windows(side, stride, padding), x, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        rhs_dilation=(dilation, dilation),
        feature_group_count=groups,
    )
