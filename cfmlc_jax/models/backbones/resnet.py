"""Residual networks with torchvision's arithmetic (He et al., CVPR 2016; stride on the 3×3).

With groups in the 3×3 convolution they are ResNeXts (Xie et al., CVPR 2017).

Stages and layers are named after torchvision's, so that weights are converted by a table.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.pooling import average_pool, max_pool, space_to_depth
from cfmlc_jax.models.layers.residual import add_relu
from cfmlc_jax.models.torch_names import TorchNames


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [b, h, w, c] -> [b, h/stride, w/stride, planes]."""

    planes: int
    stride: int
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        y = Conv(self.planes, 3, self.stride, self.dtype, name="conv1")(x)
        y = jax.nn.relu(self.norm(name="bn1")(y, train=train))
        y = Conv(self.planes, 3, 1, self.dtype, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        return add_relu(y, _shortcut(self, x, y.shape[-1], train))


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided), 1×1 and a shortcut: [b, h, w, c] -> [b, h/stride, w/stride, 4·planes].

    Attributes:
        groups: groups of the 3×3 convolution.
        group_width: channels per group at 64 planes; they grow in proportion to the planes.
    """

    planes: int
    stride: int
    dtype: Any
    norm: Any
    groups: int = 1
    group_width: int = 64

    @nn.compact
    def __call__(self, x, *, train: bool):
        width = self.planes * self.group_width // 64 * self.groups
        y = Conv(width, 1, 1, self.dtype, name="conv1")(x)
        y = jax.nn.relu(self.norm(name="bn1")(y, train=train))
        y = Conv(width, 3, self.stride, self.dtype, groups=self.groups, name="conv2")(y)
        y = jax.nn.relu(self.norm(name="bn2")(y, train=train))
        y = Conv(4 * self.planes, 1, 1, self.dtype, name="conv3")(y)
        y = self.norm(name="bn3")(y, train=train)
        return add_relu(y, _shortcut(self, x, y.shape[-1], train))


def _shortcut(block, x, channels, train):
    """The identity, or a strided 1×1 convolution and a norm if the shape changes."""
    if block.stride == 1 and x.shape[-1] == channels:
        return x
    x = Conv(channels, 1, block.stride, block.dtype, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train=train)


class ResNet(nn.Module):
    """Features of images [b, h, w, 3]: maps of all stages, the last as "map", and "pooled" float32 [b, d].

    Attributes:
        stage_sizes: blocks in each stage; stages after the first halve the map and double the planes.
        block: BasicBlock or Bottleneck.
        width: planes of the first stage.
        small_stem: for small images such as 64 px. The stem is one 3×3 convolution to half the width on 4×4
            pixels folded into channels, instead of a 7×7 convolution and a max pooling at stride 2; and the first
            stage halves the map too. It takes a fraction of the work.
        dtype: type of the computation; parameters and statistics are float32.
        norm: `BatchNorm` with its options, except its name.
        remat: one of `remat.MODES`.
    """

    stage_sizes: tuple[int, ...]
    block: Any
    width: int = 64
    small_stem: bool = False
    dtype: Any = jnp.float32
    norm: Any = BatchNorm
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = remat.block(self.remat, lambda self, x: self._stem(x, train), self, x.astype(self.dtype))
        features = {"stem": x}
        for stage in range(len(self.stage_sizes)):
            x = remat.stage(self.remat, lambda self, x, stage=stage: self._stage(x, stage, train), self, x)
            features[f"layer{stage + 1}"] = x
        return features | {"map": x, "pooled": average_pool(x)}

    def _stem(self, x, train):
        if self.small_stem:
            x = Conv(self.width // 2, 3, 1, self.dtype, name="conv1")(space_to_depth(x, 4))
        else:
            x = Conv(self.width, 7, 2, self.dtype, name="conv1")(x)
        x = jax.nn.relu(self.norm(name="bn1")(x, train=train))
        return x if self.small_stem else max_pool(x)

    def _stage(self, x, stage, train):
        for i in range(self.stage_sizes[stage]):
            stride = 2 if i == 0 and (stage > 0 or self.small_stem) else 1
            name = f"layer{stage + 1}_{i}"
            block = self.block(self.width * 2**stage, stride, self.dtype, self.norm, name=name)
            x = remat.block(self.remat, lambda block, x: block(x, train=train), block, x)
        return x


ResNet10 = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock)
ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
ResNet101 = functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
ResNet152 = functools.partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)
_ResNeXtBlock = functools.partial(Bottleneck, groups=32, group_width=4)
ResNeXt50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=_ResNeXtBlock)
ResNeXt101 = functools.partial(ResNet, stage_sizes=(3, 4, 23, 3), block=_ResNeXtBlock)
ResNeXt152 = functools.partial(ResNet, stage_sizes=(3, 8, 36, 3), block=_ResNeXtBlock)
# For the embedded 64 px scenes: maps of 16², 8² and 4².
ResNetSmall = functools.partial(ResNet, stage_sizes=(1, 1), block=BasicBlock, width=64, small_stem=True)

TORCH = TorchNames(
    modules=(
        (r"layer(\d)_(\d+)\.downsample_conv", r"layer\1.\2.downsample.0"),
        (r"layer(\d)_(\d+)\.downsample_bn", r"layer\1.\2.downsample.1"),
        (r"layer(\d)_(\d+)", r"layer\1.\2"),
    ),
    stem="conv1.weight",
    head="fc",
    query2label="backbone.0.body",
    counts_batches=True,
)
# Query2Label trains neither the stem nor the first stage nor any norm.
FROZEN = (r"backbone/(conv1|layer1_\d+)/.*", r"backbone/.*/(scale|bias)")
