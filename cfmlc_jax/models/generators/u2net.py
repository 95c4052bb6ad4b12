"""U²-Net: the saliency of every pixel (Qin et al., Pattern Recognition 2020).

A U-Net of eleven blocks, each of which is a U-Net itself. Layers are named after those of the published weights.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.pooling import max_pool2
from cfmlc_jax.models.torch_names import Table


class Stage(NamedTuple):
    """Options of one block.

    depth: convolutions on the way down.
    middle: features between the convolutions.
    features: features of the block's output.
    dilated: whether convolutions are dilated more and more instead of halving the maps.
    """

    depth: int
    middle: int
    features: int
    dilated: bool = False


# Blocks on the way down, and on the way up from the deepest one.
ENCODER = (
    Stage(7, 32, 64), Stage(6, 32, 128), Stage(5, 64, 256), Stage(4, 128, 512),
    Stage(4, 256, 512, dilated=True), Stage(4, 256, 512, dilated=True),
)  # fmt: skip
DECODER = (
    Stage(4, 256, 512, dilated=True), Stage(4, 128, 256), Stage(5, 64, 128), Stage(6, 32, 64), Stage(7, 16, 64),
)  # fmt: skip


class U2Net(nn.Module):
    """Saliency of images: [b, h, w, 3] -> every block's map by name, with "saliency" [b, h, w, 1] in (0, 1).

    "saliency" fuses the logits of the six blocks on the way up, "side1" … "side6".

    Attributes:
        encoder, decoder: the blocks in the order in which they are applied.
        dtype: type of the computation; parameters, statistics and the final sigmoid are float32.
    """

    encoder: tuple[Stage, ...] = ENCODER
    decoder: tuple[Stage, ...] = DECODER
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool) -> dict[str, Any]:
        x = images.astype(self.dtype)
        maps, ways_down = {}, []
        for level, stage in enumerate(self.encoder, 1):
            x = x if level == 1 else max_pool2(x, ceil=True)
            name = f"stage{level}"
            x = maps[name] = Block(stage, self.dtype, name=name)(x, train=train)
            ways_down.append(x)
        sides = [x]
        for level, stage in zip(range(len(self.decoder), 0, -1), self.decoder):
            beside = ways_down[level - 1]
            x = jnp.concatenate([resize_bilinear(x, beside.shape[1:3]), beside], axis=-1)
            name = f"stage{level}d"
            x = maps[name] = Block(stage, self.dtype, name=name)(x, train=train)
            sides.insert(0, x)
        logits = []
        for level, x in enumerate(sides, 1):
            name = f"side{level}"
            maps[name] = self._conv(3, name)(x)
            logits.append(resize_bilinear(maps[name], images.shape[1:3]))
        fused = maps["outconv"] = self._conv(1, "outconv")(jnp.concatenate(logits, axis=-1))
        # In half precision values near 1 would be rounded to 1, where the entropy of a mask has no gradient.
        fused = fused.astype(jnp.promote_types(fused.dtype, jnp.float32))
        return maps | {"saliency": jax.nn.sigmoid(fused)}

    def _conv(self, kernel, name):
        return Conv(1, kernel, dtype=self.dtype, use_bias=True, kernel_init=uniform_fan_in, name=name)

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return (jnp.zeros((1, 32, 32, 3)),)


class Block(nn.Module):
    """A small U-Net with a shortcut around it: [b, h, w, c] -> [b, h, w, features]."""

    stage: Stage
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        depth, middle, features, dilated = self.stage

        def conv(x, features, dilation, name):
            name = f"rebnconv{name}"
            return ConvNormReLU(features, dilation, self.dtype, name=name)(x, train=train)

        def dilation(level):
            return 2 ** (level - 1) if dilated else 1

        x = shortcut = conv(x, features, 1, "in")
        ways_down = []
        for level in range(1, depth):
            x = conv(x, middle, dilation(level), level)
            ways_down.append(x)
            if not dilated and level < depth - 1:
                x = max_pool2(x, ceil=True)
        x = conv(x, middle, dilation(depth) if dilated else 2, depth)
        for level in range(depth - 1, 0, -1):
            beside = ways_down[level - 1]
            x = jnp.concatenate([resize_bilinear(x, beside.shape[1:3]), beside], axis=-1)
            x = conv(x, features if level == 1 else middle, dilation(level), f"{level}d")
        return x + shortcut


class ConvNormReLU(nn.Module):
    """3×3 convolution, batch norm, ReLU: [b, h, w, c] -> [b, h, w, features]."""

    features: int
    dilation: int
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        conv = Conv(
            self.features,
            3,
            dtype=self.dtype,
            use_bias=True,
            kernel_init=uniform_fan_in,
            dilation=self.dilation,
            name="conv",
        )
        return jax.nn.relu(BatchNorm(dtype=self.dtype, mapped=False, name="bn")(conv(x), train=train))


def resize_bilinear(x, size):
    """Images resized by linear interpolation with aligned corners: [b, h, w, c] -> [b, *size, c]."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (
        jnp.asarray(_linear_weights(before, after), x.dtype) for before, after in zip(x.shape[1:3], size)
    )
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("Hh,Ww,bhwc->bHWc", rows, columns, x)


@functools.cache
def _linear_weights(before, after):
    """Weight of every input pixel in every output pixel along one side: float32 [after, before]."""
    places = np.arange(after) * ((before - 1) / max(after - 1, 1))
    distance = np.abs(places[:, None] - np.arange(before)[None])
    return np.maximum(1 - distance, 0).astype(np.float32)


TORCH: Table = ((r"(stage\w+)\.(\w+)\.(conv|bn)", r"\1.\2.\3_s1"),)
