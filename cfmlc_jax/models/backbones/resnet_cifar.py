"""BBN's residual network for 32 px images, with two branches (Zhou et al., CVPR 2020; He et al., section 4.2).

Stages and layers are named after BBN's, so that weights are converted by a table.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.pooling import average_pool
from cfmlc_jax.models.layers.residual import add_relu
from cfmlc_jax.models.torch_names import TorchNames

# PyTorch's kaiming_normal_: variance 2 / (inputs per output).
_kaiming_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
_Conv = functools.partial(Conv, kernel_init=_kaiming_fan_in)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights: [b, h, w, c] -> [b, h/stride, w/stride, planes]."""

    planes: int
    stride: int
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        y = _Conv(self.planes, 3, self.stride, self.dtype, name="conv1")(x)
        y = jax.nn.relu(self.norm(name="bn1")(y, train=train))
        y = _Conv(self.planes, 3, 1, self.dtype, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        return add_relu(y, padded_shortcut(x, self.planes, self.stride))


def padded_shortcut(x, planes: int, stride: int):
    """Every stride-th pixel, padded with zero channels: [b, h, w, c] -> [b, h/stride, w/stride, planes].

    Option A of He et al. (section 4.1), with half of the zero channels on each side as in BBN.
    """
    zeros = planes - x.shape[-1]
    x = x[:, ::stride, ::stride]
    return jnp.pad(x, [(0, 0)] * 3 + [(zeros // 2, zeros - zeros // 2)])


class TwoBranchResNet(nn.Module):
    """Features of images [b, h, w, 3]: maps of all stages, both branches as "map", and "pooled" float32 [b, d].

    After the last stage there are two parallel blocks, "cb_block" and "rb_block" (for BBN's
    conventional and re-balanced learning); "map" concatenates their channels in this order.

    Attributes:
        stage_sizes: blocks in each stage; stages after the first halve the map and double the planes.
        width: planes of the first stage.
        dtype: type of the computation; parameters and statistics are float32.
        norm: `BatchNorm` with its options, except its name.
        remat: one of `remat.MODES`.
    """

    stage_sizes: tuple[int, ...]
    width: int = 16
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
        last = len(self.stage_sizes) - 1
        branches = {name: self._block(x, last, name, train) for name in ("cb_block", "rb_block")}
        x = jnp.concatenate(list(branches.values()), axis=-1)
        return features | branches | {"map": x, "pooled": average_pool(x)}

    def _stem(self, x, train):
        x = _Conv(self.width, 3, 1, self.dtype, name="conv1")(x)
        return jax.nn.relu(self.norm(name="bn1")(x, train=train))

    def _stage(self, x, stage, train):
        for i in range(self.stage_sizes[stage]):
            x = self._block(x, stage, f"layer{stage + 1}_{i}", train, downsample=stage > 0 and i == 0)
        return x

    def _block(self, x, stage, name, train, *, downsample=False):
        block = Block(self.width * 2**stage, 2 if downsample else 1, self.dtype, self.norm, name=name)
        return remat.block(self.remat, lambda block, x: block(x, train=train), block, x)


# 15 blocks along one branch: 14 in the stages and the branch's own.
ResNet32 = functools.partial(TwoBranchResNet, stage_sizes=(5, 5, 4))

TORCH = TorchNames(
    modules=((r"layer(\d)_(\d+)", r"layer\1.\2"),),
    stem="conv1.weight",
    head="fc",
    query2label="backbone.0.body",
    normalisation="cifar",
    counts_batches=True,
)
