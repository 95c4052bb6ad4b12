"""TResNet: residual networks without strided convolutions (Ridnik et al., WACV 2021, arXiv:2003.13630).

The stem folds pixels into channels. Maps are halved by a blur or an average. Blocks gate their
channels by squeeze-and-excitation. The paper's in-place activated norms are plain norms here: they
compute the same and only need more memory.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.pooling import average_pool, space_to_depth
from cfmlc_jax.models.layers.residual import add_relu
from cfmlc_jax.models.torch_names import Dialect, TorchNames

# Slopes of the leaky ReLUs below zero.
_STEM_SLOPE, _BLOCK_SLOPE = 1e-2, 1e-3
# Residual branches start near zero: their last in-place norm has weight 0, hence the scale |0| + 1e-5.
_silent = nn.initializers.constant(1e-5)


class ConvNorm(nn.Module):
    """Convolution, batch norm, leaky ReLU and blur: [b, h, w, c] -> [b, h/stride, w/stride, features].

    Attributes:
        stride: 1, or 2, which adds the blur.
        slope: slope of the leaky ReLU below zero; None: no activation.
        scale_init: initialiser of the norm's scale.
    """

    features: int
    kernel: int
    stride: int = 1
    slope: float | None = _BLOCK_SLOPE
    scale_init: Any = nn.initializers.ones
    dtype: Any = jnp.float32
    norm: Any = BatchNorm

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = Conv(self.features, self.kernel, 1, self.dtype, name="conv")(x)
        x = self.norm(name="bn", scale_init=self.scale_init)(x, train=train)
        if self.slope is not None:
            x = jax.nn.leaky_relu(x, self.slope)
        return blur(x) if self.stride == 2 else x


class SqueezeExcite(nn.Module):
    """Channels multiplied by gates in (0, 1), computed from all channels' means: [b, h, w, c] -> [b, h, w, c].

    The gates are computed in at least float32, because each scales a whole map (Hu et al., CVPR 2018).

    Attributes:
        reduced: channels between the two layers that compute the gates.
    """

    reduced: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        wide = jnp.promote_types(self.dtype, jnp.float32)
        layer = functools.partial(Conv, kernel=1, use_bias=True, dtype=wide)
        hidden = jax.nn.relu(layer(self.reduced, name="fc1")(average_pool(x)[:, None, None, :]))
        return x * jax.nn.sigmoid(layer(x.shape[-1], name="fc2")(hidden)).astype(x.dtype)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [b, h, w, c] -> [b, h/stride, w/stride, planes].

    Attributes:
        gated: whether squeeze-and-excitation follows at the end of the branch.
    """

    planes: int
    stride: int
    gated: bool
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        layer = functools.partial(ConvNorm, dtype=self.dtype, norm=self.norm)
        y = layer(self.planes, 3, self.stride, name=_halving("conv1", self.stride))(x, train=train)
        y = layer(self.planes, 3, slope=None, scale_init=_silent, name="conv2")(y, train=train)
        if self.gated:
            y = SqueezeExcite(max(self.planes // 4, 64), self.dtype, name="se")(y)
        return add_relu(y, _shortcut(layer, x, self.planes, self.stride, train))


class Bottleneck(nn.Module):
    """1×1, 3×3 (blurred), 1×1 and a shortcut: [b, h, w, c] -> [b, h/stride, w/stride, 4·planes].

    Attributes:
        gated: whether squeeze-and-excitation follows the 3×3 convolution.
    """

    planes: int
    stride: int
    gated: bool
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        layer = functools.partial(ConvNorm, dtype=self.dtype, norm=self.norm)
        y = layer(self.planes, 1, name="conv1")(x, train=train)
        y = layer(self.planes, 3, self.stride, name=_halving("conv2", self.stride))(y, train=train)
        if self.gated:
            y = SqueezeExcite(max(self.planes // 2, 64), self.dtype, name="se")(y)
        y = layer(4 * self.planes, 1, slope=None, scale_init=_silent, name="conv3")(y, train=train)
        return add_relu(y, _shortcut(layer, x, 4 * self.planes, self.stride, train))


def _shortcut(layer, x, channels, stride, train):
    """The identity, or an average and a linear 1×1 layer if the shape changes."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    name = _halving("downsample", stride)
    return layer(channels, 1, slope=None, name=name)(average_pool2(x) if stride == 2 else x, train=train)


def _halving(name, stride):
    """A layer's name, marked if it halves the map, because PyTorch nests such layers differently."""
    return f"{name}_halving" if stride == 2 else name


def blur(x):
    """Every second pixel of the map blurred by (1, 2, 1) ⊗ (1, 2, 1) / 16: [b, h, w, c] -> [b, ⌈h/2⌉, ⌈w/2⌉, c].

    Borders are reflected (Zhang, ICML 2019). Computed along rows, then along columns, from strided slices:
    XLA:CPU's depthwise convolution is many times slower. Sums are at least float32.
    """
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis in (1, 2):
        size = x.shape[axis]
        padded = jnp.pad(x, _widths(axis, 1, 1), mode="reflect")
        before, centre, after = (
            jax.lax.slice_in_dim(padded, start, start + size, stride=2, axis=axis) for start in range(3)
        )
        x = (before + after + 2 * centre) / 4
    return x.astype(dtype)


def average_pool2(x):
    """2×2 average at stride 2, at the border over the pixels that exist: [b, h, w, c] -> [b, ⌈h/2⌉, ⌈w/2⌉, c]."""
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis in (1, 2):
        if x.shape[axis] % 2:  # the last pixel is averaged with its own copy
            x = jnp.pad(x, _widths(axis, 0, 1), mode="edge")
        first, second = (jax.lax.slice_in_dim(x, start, None, stride=2, axis=axis) for start in (0, 1))
        x = (first + second) / 2
    return x.astype(dtype)


def _widths(axis, before, after):
    return [(before, after) if i == axis else (0, 0) for i in range(4)]


class TResNet(nn.Module):
    """Features of images [b, h, w, 3]: maps of all stages, the last as "map", and "pooled" float32 [b, d].

    Attributes:
        stage_sizes: blocks in each stage; stages after the first halve the map and double the planes.
        blocks: BasicBlock or Bottleneck, for each stage.
        width: planes of the first stage.
        dtype: type of the computation; parameters and statistics are float32.
        norm: `BatchNorm` with its options, except its name and the initialiser of its scale.
        remat: one of `remat.MODES`.
    """

    stage_sizes: tuple[int, ...]
    blocks: tuple[Any, ...]
    width: int = 64
    dtype: Any = jnp.float32
    norm: Any = BatchNorm
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = space_to_depth(x.astype(self.dtype), 4)
        stem = ConvNorm(self.width, 3, slope=_STEM_SLOPE, dtype=self.dtype, norm=self.norm, name="conv1")
        x = remat.block(self.remat, lambda stem, x: stem(x, train=train), stem, x)
        features = {"stem": x}
        for stage in range(len(self.stage_sizes)):
            x = remat.stage(self.remat, lambda self, x, stage=stage: self._stage(x, stage, train), self, x)
            features[f"layer{stage + 1}"] = x
        return features | {"map": x, "pooled": average_pool(x)}

    def _stage(self, x, stage, train):
        gated = stage < len(self.stage_sizes) - 1
        for i in range(self.stage_sizes[stage]):
            stride = 2 if i == 0 and stage > 0 else 1
            name = f"layer{stage + 1}_{i}"
            block = self.blocks[stage](
                self.width * 2**stage, stride, gated, self.dtype, self.norm, name=name
            )  # fmt: skip
            x = remat.block(self.remat, lambda block, x: block(x, train=train), block, x)
        return x


TResNetL = functools.partial(
    TResNet,
    stage_sizes=(4, 5, 18, 3),
    blocks=(BasicBlock, BasicBlock, Bottleneck, Bottleneck),
    width=76,  # 64 × 1.2
)
TResNetLv2 = functools.partial(TResNet, stage_sizes=(3, 4, 23, 3), blocks=(Bottleneck,) * 4)

_BLOCK, _TORCH_BLOCK = r"layer(\d)_(\d+)", r"body.layer\1.\2"
_LAYERS = (
    ("conv1", "body.conv1"),
    (rf"{_BLOCK}\.(conv\d)_halving", rf"{_TORCH_BLOCK}.\3.0"),  # number 1 is the blur
    (rf"{_BLOCK}\.(conv\d)", rf"{_TORCH_BLOCK}.\3"),
    (rf"{_BLOCK}\.downsample_halving", rf"{_TORCH_BLOCK}.downsample.1"),  # number 0 is the average
    (rf"{_BLOCK}\.downsample", rf"{_TORCH_BLOCK}.downsample.0"),
)
# timm has the same modules, but its layers name their convolution and norm and contain the blur
# (checked with timm 1.0). Its norms are plain ones.
_TIMM = Dialect(
    "timm",
    "body.conv1.conv.weight",
    (
        (r"(conv\d|downsample\.\d)(?:\.0)?\.0(?=\.\D)", r"\1.conv"),
        (r"(conv\d|downsample\.\d)(?:\.0)?\.1(?=\.\D)", r"\1.bn"),
    ),
)
TORCH = TorchNames(
    modules=(
        *((rf"{pattern}\.conv", rf"{replacement}.0") for pattern, replacement in _LAYERS),
        *((rf"{pattern}\.bn", rf"{replacement}.1") for pattern, replacement in _LAYERS),
        (_BLOCK, _TORCH_BLOCK),
    ),
    stem="body.conv1.0.weight",
    head="head.fc",
    query2label="backbone.0.body",
    dialects=(_TIMM,),
    normalisation="",
    in_place_norms=True,
)
# Query2Label trains neither the stem nor the first stage; the running statistics of their norms are updated.
FROZEN = (r"backbone/(conv1|layer1_\d+)/.*",)
