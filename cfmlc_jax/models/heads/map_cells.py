"""Attention and scores of the cells of a backbone's map, for models whose patches are these cells."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.torch_names import BRANCHES

# Initial bias of the background: each class then has a share of about 1/20 of a patch, less with many classes.
BACKGROUND = 3.0


class MapCells(nn.Module):
    """Attention and score of each cell of a map, by one linear layer per branch: two [b, v, p, k].

    The cells are the patches. They are numbered column by column, like patches cut from the image. In an
    early map a cell sees little more than its own part of the image, at the image's resolution, and one
    forward pass is enough for all of them.

    Attributes:
        num_classes: k.
        attention: "self" or "cross".
        stage: name of the backbone's map, [b, v, h, w, d].
        background: also score the background, and return scores relative to it, as exclusive pooling
            needs them (`causal.patches.shares`).
        dtype: ignored; the computation is float32, see `Linear`.

    Raises:
        InputError: the backbone has no such map.
    """

    num_classes: int
    attention: str
    stage: str
    background: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        maps = [name for name, array in features.items() if array.ndim == 5]
        if self.stage not in maps:
            raise InputError(
                f"patches.map {self.stage!r} is not a map of this backbone; choose one of {', '.join(maps)}"
            )
        b, v, h, w, d = features[self.stage].shape
        cells = features[self.stage].swapaxes(2, 3).reshape(b, v, w * h, d)
        logits = [Linear(self.num_classes, name=name)(cells) for name in BRANCHES[self.attention][1:]]
        if self.background:
            # Most cells show no object. If all scores were equal at the start, every class would be present.
            background = Linear(1, name="background")(cells) + BACKGROUND
            logits = [x - background for x in logits]
        return logits[0], logits[-1]
