"""Query2Label: one learned query per class attends to a feature map (arXiv:2107.10834).

Built as in the reference: tokens are as wide as the backbone's features (no projection), with one encoder
layer, and two decoder layers without self-attention among the queries.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads.output import by_branch
from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.initialisers import uniform_within
from cfmlc_jax.models.layers.norms import LayerNorm
from cfmlc_jax.models.layers.transformer import DecoderLayer, EncoderLayer
from cfmlc_jax.models.torch_names import HeadNames

_ATTENTION_HEADS = 4
_FEED_FORWARD = 8192
_TEMPERATURE = 10000


class Query2Label(nn.Module):
    """Logits of each branch from features["map"]: [b, v, h, w, d] -> `HeadOutput` of [b, v, k].

    Attributes:
        num_classes: k.
        attention: a key of `torch_names.BRANCHES`.
        dtype: type of the transformer; softmax, norms' statistics and logits are at least float32.
        remat: one of `remat.MODES`; each layer of the transformer is a block.

    Raises:
        InputError: d is not a multiple of 4, as the attention's heads and the positions need.
    """

    num_classes: int
    attention: str
    dtype: Any = jnp.float32
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, features, *, train: bool):
        x = features["map"]
        b, v, h, w, d = x.shape
        position = jnp.asarray(sine_positions(h, w, d)).reshape(1, 1, h * w, d)
        sizes = {"heads": _ATTENTION_HEADS, "feed_forward": _FEED_FORWARD}
        fields = {**sizes, "dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        memory = remat.block(
            self.remat,
            lambda layer, tokens: layer(tokens, position=position, train=train),
            EncoderLayer(**fields, name="encoder_0"),
            x.reshape(b, v, h * w, d),
        )
        queries = self.param("query_embed", nn.initializers.normal(1.0), (self.num_classes, d))
        queries = queries.reshape(1, 1, self.num_classes, d)
        # Targets start as zeros and queries are the same for all views, so axes b and v of size 1 suffice.
        target = jnp.zeros(queries.shape, self.dtype)
        for i in range(2):
            target = remat.block(
                self.remat,
                lambda layer, target, memory, queries: layer(
                    target, memory, query_position=queries, position=position, train=train
                ),
                DecoderLayer(**fields, name=f"decoder_{i}"),
                *(target, memory, queries),
            )
        target = LayerNorm(dtype=self.dtype, name="norm")(target)
        return by_branch(self.attention, lambda name: GroupWiseLinear(name=name)(target))


class GroupWiseLinear(nn.Module):
    """One logit per class by a separate linear map of that class's features: [b, v, k, d] -> [b, v, k].

    Computed in at least float32 and initialised as in `linear.Linear`. Names and shapes are PyTorch's.
    """

    @nn.compact
    def __call__(self, x):
        k, d = x.shape[-2:]
        uniform = uniform_within(d**-0.5)
        weight = self.param("W", uniform, (1, k, d))
        bias = self.param("b", uniform, (1, k))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (x * weight.reshape(1, 1, k, d)).sum(axis=-1) + bias.reshape(1, 1, k)


def sine_positions(height: int, width: int, channels: int) -> np.ndarray:
    """Sine and cosine positions of every pixel, as in DETR (arXiv:2005.12872): float32 [h, w, c].

    The first half of the channels encodes the row, the second the column, as pairs of a sine and a
    cosine with geometrically growing wavelengths. Rows and columns count from 1 and are scaled to
    angles of at most 2π.

    Raises:
        InputError: `channels` is not a multiple of 4.
    """
    if channels % 4:
        raise InputError(
            f"Query2Label cannot read maps of {channels} features: their number must be a multiple of 4; "
            "choose another backbone"
        )
    half = channels // 2
    wavelengths = _TEMPERATURE ** (2 * np.arange(half // 2) / half)

    def encode(size):
        angles = 2 * np.pi * np.arange(1, size + 1) / (size + 1e-6)
        angles = angles[:, None] / wavelengths
        return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(size, half)

    rows = np.broadcast_to(encode(height)[:, None], (height, width, half))
    columns = np.broadcast_to(encode(width)[None], (height, width, half))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


def _positions_entry(entries: Mapping[str, Any], image_size: int) -> dict[str, np.ndarray]:
    """The entry of positions [1, d, h, w] for one image size, which PyTorch's checkpoints contain."""
    query = entries["query_embed.weight"]
    channels = int(getattr(query, "shape", query)[1])
    side = image_size // _stride(entries)
    return {"backbone.1.pe": sine_positions(side, side, channels).transpose(2, 0, 1)[None].copy()}


def _stride(entries):
    """Pixels of the image along the side of one of the last map, of a backbone that is recognised by its entries."""
    if any(map(_OF_VIT.match, entries)):
        embedding = entries["backbone.0.patch_embed.proj.weight"]
        return int(getattr(embedding, "shape", embedding)[-1])
    return _CVT_STRIDE if any(map(_OF_CVT.match, entries)) else _STRIDE


_STRIDE, _CVT_STRIDE = 32, 16
_OF_CVT = re.compile(r"backbone\.0\.stage\d\.")
_OF_VIT = re.compile(r"backbone\.0\.blocks\.\d")

TORCH = HeadNames(
    prefix=lambda backbone: "fc",
    branch="fc",
    bias="b",
    trunk=(
        (r"encoder_(\d)", r"transformer.encoder.layers.\1"),
        (r"decoder_(\d)", r"transformer.decoder.layers.\1"),
        (r"norm", "transformer.decoder.norm"),
        (r"query_embed", "query_embed.weight"),
    ),
    derived=_positions_entry,
)
