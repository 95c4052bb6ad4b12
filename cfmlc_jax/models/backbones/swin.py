"""Swin transformers with Microsoft's arithmetic (Liu et al., ICCV 2021).

Attention works within square windows, which every other block shifts by half a window. To shift them the
map is rolled; some windows then contain pixels from opposite ends of the map, and a mask keeps those apart.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.norms import LayerNorm
from cfmlc_jax.models.layers.pooling import average_pool
from cfmlc_jax.models.layers.residual import DropPath
from cfmlc_jax.models.layers.vision_transformer import Mlp, PatchEmbed, ViTDense
from cfmlc_jax.models.torch_names import Dialect, TorchNames

# Side of the patches that become tokens, pixels.
_PATCH = 4
# Added to the logits of pairs of pixels that share a shifted window but come from opposite ends of the map.
_APART = np.float32(-100.0)


def partition(x, window: int):
    """Windows of a map, row by row, with their pixels as tokens: [b, h, w, d] -> [b, windows, window², d]."""
    b, h, w, d = x.shape
    x = x.reshape(b, h // window, window, w // window, window, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, d)


def join(windows, shape: tuple[int, ...]):
    """The map of a shape [b, h, w, d] from its windows, the inverse of `partition`: -> [b, h, w, d]."""
    b, h, w, d = shape
    side = math.isqrt(windows.shape[2])
    x = windows.reshape(b, h // side, w // side, side, side, d)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for every pair of a window's tokens: int64 [window², window²].

    It is (dy + window − 1)·(2·window − 1) + dx + window − 1, where (dy, dx) is the query's position minus the key's.
    """
    y, x = np.divmod(np.arange(window * window), window)
    dy, dx = y[:, None] - y[None, :], x[:, None] - x[None, :]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def shift_mask(h: int, w: int, window: int) -> np.ndarray:
    """Mask added to the logits in shifted windows, 0 or −100: float32 [windows, window², window²].

    After rolling by half a window, the last window of a row or column contains pixels from both ends of the map.
    """
    rows, columns = _ends(h, window), _ends(w, window)
    ends = partition((2 * rows[:, None] + columns[None, :])[None, :, :, None], window)[0, :, :, 0]
    return np.where(ends[:, :, None] == ends[:, None, :], np.float32(0), _APART)


def _ends(size, window):
    """1 for positions of a rolled axis that come from its beginning, else 0: int64 [size]."""
    return (np.arange(size) >= size - window // 2).astype(np.int64)


class WindowAttention(nn.Module):
    """Attention among the tokens of each window: [b, windows, n, d] -> [b, windows, n, d].

    Attributes:
        heads: number of heads into which d is split.
        dtype: type of the computation; the softmax is at least float32.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x, mask=None):
        d, window = x.shape[-1], math.isqrt(x.shape[2])
        qkv = ViTDense(3 * d, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(*x.shape[:-1], 3, self.heads, d // self.heads)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.normal(0.02),
            ((2 * window - 1) ** 2, self.heads),
        )
        bias = table[relative_position_index(window)].transpose(2, 0, 1)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # g: windows; n, m: queries and keys; a: heads.
        logits = jnp.einsum(
            "bgnad,bgmad->bganm", q * (d // self.heads) ** -0.5, k, preferred_element_type=wide
        )
        logits += bias[None, None]
        if mask is not None:
            logits += mask[None, :, None]
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("bganm,bgmad->bgnad", weights, v)
        return ViTDense(d, dtype=self.dtype, name="proj")(y.reshape(x.shape))


class Block(nn.Module):
    """Attention within windows, then two dense layers, each added to its input: [b, h, w, d] -> [b, h, w, d].

    Attributes:
        window: side of the windows, in tokens.
        shifted: whether windows are shifted down and right by half a window; ignored for a map of one window.
    """

    heads: int
    window: int
    shifted: bool
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        h, w = x.shape[1:3]
        shift = self.window // 2 if self.shifted and min(h, w) > self.window else 0
        mask = shift_mask(h, w, self.window) if shift else None
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        windows = partition(jnp.roll(y, (-shift, -shift), axis=(1, 2)), self.window)
        windows = WindowAttention(self.heads, self.dtype, name="attn")(windows, mask)
        y = jnp.roll(join(windows, x.shape), (shift, shift), axis=(1, 2))
        x = x + DropPath(self.drop_path)(y, train=train)
        y = Mlp(functools.partial(jax.nn.gelu, approximate=False), self.dtype, name="mlp")(
            LayerNorm(dtype=self.dtype, name="norm2")(x)
        )
        return x + DropPath(self.drop_path)(y, train=train)


class PatchMerging(nn.Module):
    """2×2 tokens merged into one: [b, h, w, d] -> [b, h/2, w/2, 2·d]."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        # Order of the four tokens: down, then right; `space_to_depth` goes right first.
        x = jnp.concatenate([x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)], axis=-1)
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return ViTDense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name="reduction")(x)


class Swin(nn.Module):
    """Features of images [b, h, w, 3]: maps of all stages, the last one normalised as "map" [b, h/32, w/32, d],
    and "pooled" [b, d], at least float32.

    Attributes:
        width: features of the first stage; each later stage doubles them and halves the map.
        heads: attention heads of each stage.
        depths: blocks in each stage.
        window: side of the windows, in tokens of 4×4 pixels.
        drop_path: stochastic depth of the last block in training; it grows linearly from 0 at the first block.
        dtype: type of the computation; parameters are float32.
        norm: ignored; there are no batch norms.
        remat: one of `remat.MODES`.

    Raises:
        InputError: windows do not tile the image at every stage.
    """

    width: int
    heads: tuple[int, ...]
    window: int
    depths: tuple[int, ...] = (2, 2, 18, 2)
    drop_path: float = 0.1
    dtype: Any = jnp.float32
    norm: Any = None
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, x, *, train: bool):
        for size in x.shape[1:3]:
            _check_size(size, self.window, len(self.depths))
        x = PatchEmbed(self.width, _PATCH, _PATCH, padding=0, dtype=self.dtype, name="patch_embed")(x)
        features = {}
        for stage in range(len(self.depths)):
            x = remat.stage(self.remat, lambda self, x, stage=stage: self._stage(x, stage, train), self, x)
            features[f"stage{stage + 1}"] = x
        x = LayerNorm(dtype=self.dtype, name="norm")(x)
        return features | {"map": x, "pooled": average_pool(x)}

    def _stage(self, x, stage, train):
        if stage:
            x = PatchMerging(self.dtype, name=f"layers{stage - 1}_downsample")(x)
        before = sum(self.depths[:stage])
        rates = np.linspace(0, self.drop_path, sum(self.depths))[before : before + self.depths[stage]]
        for i, rate in enumerate(rates):
            block = Block(
                self.heads[stage],
                self.window,
                shifted=i % 2 == 1,
                drop_path=float(rate),
                dtype=self.dtype,
                name=f"layers{stage}_blocks{i}",
            )
            x = remat.block(self.remat, lambda block, x: block(x, train=train), block, x)
        return x


def _check_size(size, window, stages):
    unit = _PATCH * window * 2 ** (stages - 1)
    if size < unit or size % unit:
        below = max(unit, size // unit * unit)
        raise InputError(
            f"image size {size} is not divisible by {unit}, as swin's windows of {window} tokens require; "
            f"try {below} or {below + unit}"
        )


SwinB224 = functools.partial(Swin, width=128, heads=(4, 8, 16, 32), window=7)
SwinB384 = functools.partial(Swin, width=128, heads=(4, 8, 16, 32), window=12)
SwinL224 = functools.partial(Swin, width=192, heads=(6, 12, 24, 48), window=7)
SwinL384 = functools.partial(Swin, width=192, heads=(6, 12, 24, 48), window=12)

_TABLE = re.compile(r"(.*layers\.(\d+)\.blocks\.(\d+)\.)attn\.relative_position_bias_table")


def derived(entries: Mapping[str, Any], image_size: int) -> dict[str, np.ndarray]:
    """PyTorch's entries that follow from the architecture: indices of the bias tables and masks.

    Args:
        entries: arrays or shapes by key.
        image_size: pixels; a map of a single window has no mask.

    Raises:
        InputError: windows do not tile images of that size.
    """
    derived_entries = {}
    blocks = [(match, entries[match[0]]) for match in map(_TABLE.fullmatch, entries) if match]
    stages = len({match[2] for match, _ in blocks})
    for match, table in blocks:
        block, stage, i = match[1], int(match[2]), int(match[3])
        window = (math.isqrt(getattr(table, "shape", table)[0]) + 1) // 2
        _check_size(image_size, window, stages)
        derived_entries[f"{block}attn.relative_position_index"] = relative_position_index(window)
        side = image_size // (_PATCH * 2**stage)
        if i % 2 and side > window:
            derived_entries[f"{block}attn_mask"] = shift_mask(side, side, window)
    return derived_entries


# timm since 0.9 has patch merging at the start of the next stage (checked with timm 1.0.31).
_TIMM = Dialect(
    "timm",
    "layers.3.downsample.reduction.weight",
    (
        (r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
        (r"^head\.(?=weight|bias)", "head.fc."),
    ),
)
# torchvision numbers stages and the patch mergings between them in one sequence (checked with 0.29.1).
_TORCHVISION = Dialect(
    "torchvision",
    "features.0.0.weight",
    (
        (r"^patch_embed\.proj\.", "features.0.0."),
        (r"^patch_embed\.norm\.", "features.0.2."),
        (r"^layers\.(\d+)\.blocks\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
        (r"^layers\.(\d+)\.downsample\.", lambda match: f"features.{2 * int(match[1]) + 2}."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
    ),
)
TORCH = TorchNames(
    modules=(
        (r"layers(\d+)_blocks(\d+)", r"layers.\1.blocks.\2"),
        (r"layers(\d+)_downsample", r"layers.\1.downsample"),
    ),
    stem="patch_embed.proj.weight",
    head="head",
    query2label="backbone.0",
    dialects=(_TIMM, _TORCHVISION),
    derived=derived,
)
