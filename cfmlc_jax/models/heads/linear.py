"""The linear head: one linear layer on pooled features for each branch."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.models.heads.output import by_branch
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.torch_names import HeadNames


class LinearHead(nn.Module):
    """Logits of each branch from pooled features: [b, v, d] -> `HeadOutput` of [b, v, k].

    Attributes:
        num_classes: k.
        attention: a key of `BRANCHES`.
        dtype: ignored; the computation is float32, see `Linear`.
    """

    num_classes: int
    attention: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        return by_branch(self.attention, lambda name: Linear(self.num_classes, name=name)(features["pooled"]))


TORCH = HeadNames(prefix=lambda backbone: backbone.head, branch="fc", bias="bias")
