"""Convolutional vision transformers with the official arithmetic (Wu et al., ICCV 2021).

Queries, keys and values are computed from the map by depthwise convolutions; those for keys and values
halve it. There are no position embeddings, because the zero padding of the convolutions carries positions. As
in Query2Label, the class token of the last stage takes part in attention, but only the map is returned.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.norms import BatchNorm, LayerNorm
from cfmlc_jax.models.layers.pooling import average_pool
from cfmlc_jax.models.layers.residual import DropPath
from cfmlc_jax.models.layers.vision_transformer import Mlp, PatchEmbed, ViTDense, quick_gelu
from cfmlc_jax.models.torch_names import TorchNames


class DepthwiseConv(nn.Module):
    """3×3 convolution of each channel separately: [b, h, w, c] -> [b, ⌈h/stride⌉, ⌈w/stride⌉, c].

    Computed as the sum of nine shifted maps, because XLA's convolution takes many times as long on CPU. The
    sum is at least float32, as in a convolution.
    """

    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        h, w, c = x.shape[1:]
        kernel = self.param("kernel", uniform_fan_in, (3, 3, 1, c))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0))).astype(wide)
        taps = (
            padded[:, dy : dy + h : self.stride, dx : dx + w : self.stride] * kernel[dy, dx][None, None]
            for dy in range(3)
            for dx in range(3)
        )
        return functools.reduce(jnp.add, taps).astype(self.dtype)


class ConvProjection(nn.Module):
    """Depthwise convolution and batch norm: [b, h, w, d] -> [b, ⌈h/stride⌉, ⌈w/stride⌉, d]."""

    stride: int
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        return self.norm(name="bn")(DepthwiseConv(self.stride, self.dtype, name="conv")(x), train=train)


class Attention(nn.Module):
    """Attention of tokens to a map of half the size: [b, n, d] -> [b, n, d].

    Attributes:
        heads: number of heads into which d is split.
        dtype: type of the computation; the softmax is at least float32.
        norm: `BatchNorm` with its options, except its name.
    """

    heads: int
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, grid: tuple[int, int], *, train: bool):
        b, n, d = x.shape
        h, w = grid
        # The class token, if there is one, comes first and skips the convolutions.
        class_token, pixels = x[:, : n - h * w], x[:, n - h * w :].reshape(b, h, w, d)

        def projected(name, stride):
            y = ConvProjection(stride, self.dtype, self.norm, name=f"conv_proj_{name}")(pixels, train=train)
            tokens = jnp.concatenate([class_token, y.reshape(b, -1, d)], axis=1)
            tokens = ViTDense(d, dtype=self.dtype, name=f"proj_{name}")(tokens)
            return tokens.reshape(b, -1, self.heads, d // self.heads)

        q, k, v = projected("q", 1), projected("k", 2), projected("v", 2)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # n, m: queries and keys; a: heads. Scaled by the full width d, not a head's, as in the published weights.
        logits = jnp.einsum("bnad,bmad->banm", q, k, preferred_element_type=wide) * d**-0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("banm,bmad->bnad", weights, v).reshape(b, n, d)
        return ViTDense(d, dtype=self.dtype, name="proj")(y)


class Block(nn.Module):
    """Attention, then two dense layers, each added to its input: [b, n, d] -> [b, n, d]."""

    heads: int
    drop_path: float
    dtype: Any
    norm: Any

    @nn.compact
    def __call__(self, x, grid: tuple[int, int], *, train: bool):
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        y = Attention(self.heads, self.dtype, self.norm, name="attn")(y, grid, train=train)
        x = x + DropPath(self.drop_path)(y, train=train)
        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = Mlp(quick_gelu, self.dtype, name="mlp")(y)
        return x + DropPath(self.drop_path)(y, train=train)


class Stage(nn.Module):
    """Embedding of overlapping patches, then blocks: [b, h, w, c] -> [b, h/stride, w/stride, width].

    Attributes:
        kernel, stride, padding: of the convolution that embeds patches.
        drop_path: stochastic depth of the last block in training; it grows linearly from 0 at the first block.
        class_token: whether a learned token is added to those of the map; it is dropped at the end.
        remat: one of `remat.MODES`.
    """

    width: int
    depth: int
    heads: int
    kernel: int
    stride: int
    padding: int
    drop_path: float
    class_token: bool
    dtype: Any
    norm: Any
    remat: str

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = PatchEmbed(
            self.width, self.kernel, self.stride, self.padding, dtype=self.dtype, name="patch_embed"
        )(x)
        b, h, w, d = shape = x.shape
        x = x.reshape(b, h * w, d)
        if self.class_token:
            token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, d))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (b, 1, d)), x], axis=1)
        for i, rate in enumerate(np.linspace(0, self.drop_path, self.depth)):
            block = Block(self.heads, float(rate), self.dtype, self.norm, name=f"blocks{i}")
            x = remat.block(self.remat, lambda block, x: block(x, (h, w), train=train), block, x)
        return x[:, -h * w :].reshape(shape)


class CvT(nn.Module):
    """Features of images [b, h, w, 3]: maps of all stages, the last one normalised as "map" [b, h/16, w/16, d],
    and "pooled" [b, d], at least float32.

    Attributes:
        widths, depths, heads: of each stage. The first stage's map has a quarter of the image's
            side, each later map half the side of the one before.
        drop_path: stochastic depth of the last stage's last block in training.
        dtype: type of the computation; parameters and statistics are float32.
        norm: `BatchNorm` with its options, except its name.
        remat: one of `remat.MODES`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    drop_path: float = 0.3
    dtype: Any = jnp.float32
    norm: Any = BatchNorm
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, x, *, train: bool):
        features = {}
        last = len(self.widths) - 1
        for i, (width, depth, heads) in enumerate(zip(self.widths, self.depths, self.heads, strict=True)):
            kernel, stride, padding = (7, 4, 2) if i == 0 else (3, 2, 1)
            stage = Stage(
                width,
                depth,
                heads,
                kernel,
                stride,
                padding,
                drop_path=self.drop_path if i == last else 0.0,
                class_token=i == last,
                dtype=self.dtype,
                norm=self.norm,
                remat=self.remat,
                name=f"stage{i}",
            )
            x = remat.stage(self.remat, lambda stage, x: stage(x, train=train), stage, x)
            features[f"stage{i + 1}"] = x
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return features | {"map": x, "pooled": average_pool(x)}


CvTW24 = functools.partial(CvT, widths=(192, 768, 1024), depths=(2, 2, 20), heads=(3, 12, 16))

TORCH = TorchNames(
    modules=((r"stage(\d+)\.blocks(\d+)", r"stage\1.blocks.\2"),),
    stem="stage0.patch_embed.proj.weight",
    head="head",
    query2label="backbone.0",
    counts_batches=True,
)
