"""Query2Label: one learned query for each class asks a map of features (arXiv:2107.10834).

As the reference builds it: tokens as wide as the backbone's features (no projection), one encoder
layer, two decoder layers whose queries do not see each other.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads.output import by_branch
from cfmlc_jax.models.layers.initialisers import uniform_within
from cfmlc_jax.models.layers.norms import LayerNorm
from cfmlc_jax.models.layers.transformer import DecoderLayer, EncoderLayer
from cfmlc_jax.models.torch_names import HeadNames

_ATTENTION_HEADS = 4
_FEED_FORWARD = 8192
_TEMPERATURE = 10000


class Query2Label(nn.Module):
    """Logits of features["map"] [b, v, h, w, d], each [b, v, k]: one linear map per class and branch.

    Attributes:
        num_classes: k.
        attention: a key of `torch_names.BRANCHES`.
        dtype: of the transformer; softmax, norms' statistics and logits are at least float32.

    Raises:
        InputError: a d that is no multiple of 4, for the attention's heads and the positions.
    """

    num_classes: int
    attention: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        x = features["map"]
        b, v, h, w, d = x.shape
        position = jnp.asarray(sine_positions(h, w, d)).reshape(1, 1, h * w, d)
        sizes = {"heads": _ATTENTION_HEADS, "feed_forward": _FEED_FORWARD}
        fields = {**sizes, "dtype": self.dtype, "kernel_init": nn.initializers.xavier_uniform()}
        memory = EncoderLayer(**fields, name="encoder_0")(
            x.reshape(b, v, h * w, d), position=position, train=train
        )
        queries = self.param("query_embed", nn.initializers.normal(1.0), (self.num_classes, d))
        queries = queries.reshape(1, 1, self.num_classes, d)
        # Nothing but their queries tells targets apart at first, in any view: b and v of 1 will do.
        target = jnp.zeros(queries.shape, self.dtype)
        for i in range(2):
            layer = DecoderLayer(**fields, name=f"decoder_{i}")
            target = layer(target, memory, query_position=queries, position=position, train=train)
        target = LayerNorm(dtype=self.dtype, name="norm")(target)
        return by_branch(self.attention, lambda name: GroupWiseLinear(name=name)(target))


class GroupWiseLinear(nn.Module):
    """A linear map to one logit for each class's own features: [b, v, k, d] -> [b, v, k].

    At least float32, as in `linear.Linear`; starts as it does. Names and shapes are PyTorch's.
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
    """Sines and cosines of every pixel's place, float32 [h, w, c], as in DETR (arXiv:2005.12872).

    The first half of the channels encodes the row, the second the column, in pairs of a sine and a
    cosine whose wavelengths grow geometrically. Rows and columns count from 1 and are normalised to
    angles of at most 2π.

    Raises:
        InputError: channels that are no multiple of 4.
    """
    if channels % 4:
        raise InputError(
            f"Query2Label cannot read maps of {channels} features: they must be a multiple of 4; "
            "take a backbone of another width"
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
    """The positions, which PyTorch's checkpoints hold, [1, d, h, w] of one image size."""
    query = entries["query_embed.weight"]
    channels = int(getattr(query, "shape", query)[1])
    side = image_size // (_CVT_STRIDE if any(map(_OF_CVT.match, entries)) else _STRIDE)
    return {"backbone.1.pe": sine_positions(side, side, channels).transpose(2, 0, 1)[None].copy()}


# How much smaller a map is than its image: the entries tell a CvT from all other backbones.
_STRIDE, _CVT_STRIDE = 32, 16
_OF_CVT = re.compile(r"backbone\.0\.stage\d\.")

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
