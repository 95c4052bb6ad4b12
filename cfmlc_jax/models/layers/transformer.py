"""Transformer layers with PyTorch's arithmetic, post-norm (Vaswani et al., NeurIPS 2017).

Tokens have leading axes [b, v], which are never merged, because b is split over devices. Modules are named
as in PyTorch, so that the table for converting weights only needs the names of the layers.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.norms import LayerNorm

DROPOUT = 0.1


class Attention(nn.Module):
    """Multi-head attention: queries [b, v, q, d], keys and values [b, v, n, d] -> [b, v, q, d].

    Queries that are the same for all views may have axes b and v of size 1. The softmax is at least float32.

    Attributes:
        heads: number of heads; must divide d.
        dtype: type of the computation.
        kernel_init: initialiser of the output's kernel; the input projections are always Xavier uniform,
            over all three together.
    """

    heads: int
    dtype: Any = jnp.float32
    kernel_init: Any = uniform_fan_in

    @nn.compact
    def __call__(self, query, key, value, *, train: bool):
        d = query.shape[-1]
        weight = self.param("in_proj_weight", nn.initializers.xavier_uniform(), (3 * d, d))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * d,))

        def project(x, part):
            rows = slice(part * d, (part + 1) * d)
            y = jnp.einsum("bvnd,ed->bvne", x.astype(self.dtype), weight[rows].astype(self.dtype))
            y += bias[rows].astype(self.dtype).reshape(1, 1, 1, d)
            return y.reshape(*y.shape[:-1], self.heads, d // self.heads)

        q, k, v = (project(x, part) for part, x in enumerate((query, key, value)))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        similarity = jnp.einsum("bvqhe,bvnhe->bvhqn", q, k, preferred_element_type=wide)
        weights = jax.nn.softmax(similarity * (d // self.heads) ** -0.5).astype(self.dtype)
        attended = jnp.einsum("bvhqn,bvnhe->bvqhe", _dropout(weights, train), v)
        attended = attended.reshape(*attended.shape[:-2], d)
        zeros = nn.initializers.zeros
        return Dense(d, kernel_init=self.kernel_init, bias_init=zeros, dtype=self.dtype, name="out_proj")(
            attended
        )


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network: tokens [b, v, n, d] -> [b, v, n, d].

    Attributes:
        heads: number of attention heads; must divide d.
        feed_forward: hidden features of the feed-forward network.
        dtype: type of the computation; statistics of norms are at least float32.
        kernel_init: initialiser of all kernels except the attention's input projections.
    """

    heads: int
    feed_forward: int
    dtype: Any = jnp.float32
    kernel_init: Any = uniform_fan_in

    @nn.compact
    def __call__(self, x, *, position, train: bool):
        """Encode tokens; positions [1, 1, n, d] are added to queries and keys, not to values."""
        attention = Attention(self.heads, self.dtype, self.kernel_init, name="self_attn")
        x = x.astype(self.dtype)
        place = x + position.astype(self.dtype)
        x = LayerNorm(dtype=self.dtype, name="norm1")(
            x + _dropout(attention(place, place, x, train=train), train)
        )
        return LayerNorm(dtype=self.dtype, name="norm2")(x + _dropout(_feed_forward(self, x, train), train))


class DecoderLayer(nn.Module):
    """Attention of targets to a memory and a feed-forward network: [b, v, q, d], [b, v, n, d] -> [b, v, q, d].

    There is no self-attention among the targets. Attributes as in `EncoderLayer`.
    """

    heads: int
    feed_forward: int
    dtype: Any = jnp.float32
    kernel_init: Any = uniform_fan_in

    @nn.compact
    def __call__(self, target, memory, *, query_position=0.0, position=0.0, train: bool):
        """Decode targets; positions, [1, 1, q, d] and [1, 1, n, d], are added to queries and keys, not to values."""
        attention = Attention(self.heads, self.dtype, self.kernel_init, name="multihead_attn")
        query = target + jnp.asarray(query_position, self.dtype)
        key = memory + jnp.asarray(position, self.dtype)
        x = target + _dropout(attention(query, key, memory, train=train), train)
        x = LayerNorm(dtype=self.dtype, name="norm2")(x)
        return LayerNorm(dtype=self.dtype, name="norm3")(x + _dropout(_feed_forward(self, x, train), train))


def _feed_forward(layer, x, train):
    dense = functools.partial(Dense, kernel_init=layer.kernel_init, dtype=layer.dtype)
    hidden = jax.nn.relu(dense(layer.feed_forward, name="linear1")(x))
    return dense(x.shape[-1], name="linear2")(_dropout(hidden, train))


def _dropout(x, train):
    """Dropout with probability `DROPOUT`; must be called inside a module."""
    return nn.Dropout(DROPOUT)(x, deterministic=not train)
