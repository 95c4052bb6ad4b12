"""Attention and scores of the cells of a backbone's map, where cells are the patches."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.torch_names import BRANCHES

# Bias of the background at the start: a patch is then a twentieth each class's, or less of many.
BACKGROUND = 3.0


class MapCells(nn.Module):
    """A linear layer for each branch, on the cells of a map: two [b, v, p, k], attention and score.

    The cells are the patches, numbered column by column, as patches cut from the image are. In an
    early map a cell sees little more than its own part of the image, at the image's resolution; all
    of them cost one forward pass.

    Attributes:
        num_classes: k.
        attention: "self" or "cross".
        stage: which of the backbone's maps, [b, v, h, w, d].
        background: score the background too, and give scores relative to it, as exclusive pooling
            takes them (`causal.patches.shares`).
        dtype: of the computation; here it is always float32, see `Linear`.

    Raises:
        InputError: a backbone without that map.
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
            raise InputError(f"patches.map {self.stage!r} is not a map of this backbone: {', '.join(maps)}")
        b, v, h, w, d = features[self.stage].shape
        cells = features[self.stage].swapaxes(2, 3).reshape(b, v, w * h, d)
        logits = [Linear(self.num_classes, name=name)(cells) for name in BRANCHES[self.attention][1:]]
        if self.background:
            # Most cells show nothing: were all scores equal at the start, every class would be found in some cell.
            background = Linear(1, name="background")(cells) + BACKGROUND
            logits = [x - background for x in logits]
        return logits[0], logits[-1]
