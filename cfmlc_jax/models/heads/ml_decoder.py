"""ML-Decoder: a few fixed random queries attend to a feature map, each for several classes.

Ridnik et al., WACV 2023 (arXiv:2111.12933).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads.output import by_branch
from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.norms import LayerNorm
from cfmlc_jax.models.layers.transformer import DROPOUT, DecoderLayer
from cfmlc_jax.models.torch_names import HeadNames

_EMBEDDING = 768
_ATTENTION_HEADS = 8
_FEED_FORWARD = 2048
# The published number of queries.
_QUERIES = 100


class MLDecoder(nn.Module):
    """Logits of each branch from features["map"]: [b, v, h, w, d] -> `HeadOutput` of [b, v, k].

    Each branch is a complete decoder.

    Attributes:
        num_classes: k.
        attention: a key of `torch_names.BRANCHES`.
        dtype: type of the computation; softmax, norms' statistics and logits are at least float32.
        queries: number of queries, of which at most k are used; a negative number stands for 100.
        remat: one of `remat.MODES`; each branch is a block.

    Raises:
        InputError: `queries` is 0.
    """

    num_classes: int
    attention: str
    dtype: Any = jnp.float32
    queries: int = _QUERIES
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, features, *, train: bool):
        queries = number_of_queries(self.queries, self.num_classes)
        b, v, h, w, d = features["map"].shape
        tokens = features["map"].reshape(b, v, h * w, d)

        def logits(name):
            branch = Branch(self.num_classes, queries, self.dtype, name=name)
            return remat.block(self.remat, lambda branch, x: branch(x, train=train), branch, tokens)

        return by_branch(self.attention, logits)


class Branch(nn.Module):
    """One logit per class from tokens: [b, v, n, d] -> [b, v, k].

    Attributes:
        num_classes: k.
        queries: g; each scores ⌈k / g⌉ classes, the last one those that remain.
        dtype: type of the computation.
    """

    num_classes: int
    queries: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens, *, train: bool):
        memory = jax.nn.relu(Dense(_EMBEDDING, dtype=self.dtype, name="embed_standart")(tokens))
        query = self.param("query_embed", nn.initializers.normal(1.0), (self.queries, _EMBEDDING))
        query = query.astype(self.dtype).reshape(1, 1, self.queries, _EMBEDDING)
        if train:  # dropout makes the queries of views differ; without it all views share them
            query = jnp.broadcast_to(query, (*tokens.shape[:2], *query.shape[2:]))
        query = query + nn.Dropout(DROPOUT)(query, deterministic=not train)
        query = LayerNorm(dtype=self.dtype, name="norm1")(query)
        decoder = DecoderLayer(_ATTENTION_HEADS, _FEED_FORWARD, self.dtype, name="decoder")
        return self._logits_of_queries(decoder(query, memory, train=train))

    def _logits_of_queries(self, x):
        """Logits from decoded queries, at least float32, as in `linear.Linear`: [b, v, g, d] -> [b, v, k]."""
        each = -(-self.num_classes // self.queries)
        shape = (self.queries, _EMBEDDING, each)
        # PyTorch computes the fans of such a shape as 768·each (in) and g·each (out).
        xavier = nn.initializers.variance_scaling(1.0, "fan_avg", "normal", in_axis=1, out_axis=0)
        pooling = self.param("duplicate_pooling", xavier, shape)
        bias = self.param("duplicate_pooling_bias", nn.initializers.zeros, (self.num_classes,))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        logits = jnp.einsum("bvgd,gde->bvge", x, pooling)
        logits = logits.reshape(*logits.shape[:2], self.queries * each)[..., : self.num_classes]
        return logits + bias.reshape(1, 1, self.num_classes)


def number_of_queries(queries: int, num_classes: int) -> int:
    """Number of queries that are used: at most one per class; a negative number stands for 100.

    Raises:
        InputError: `queries` is 0.
    """
    if queries == 0:
        raise InputError("an ML-Decoder head with 0 queries has no logits; set 1 or more, or -1 for 100")
    return min(queries if queries > 0 else _QUERIES, num_classes)


# "embed_standart" is the published checkpoints' spelling.
TORCH = HeadNames(
    prefix=lambda backbone: backbone.head.partition(".")[0],
    branch="head",
    bias="decoder.duplicate_pooling_bias",
    queries="decoder.query_embed.weight",
    inner=(
        (r"norm1", "decoder.layers.0.norm1"),
        (r"decoder", "decoder.layers.0"),
        (r"query_embed", "decoder.query_embed.weight"),
        (r"(embed_standart|duplicate_pooling|duplicate_pooling_bias)", r"decoder.\1"),
    ),
)
FROZEN = (r"head/\w+/query_embed",)
