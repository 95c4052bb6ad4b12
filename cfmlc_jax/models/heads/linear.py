"""Heads: features of views to the logits that patches and wholes are judged by.

A head returns `Judged` of a backbone's features. What `attention` says is how many branches it has:
"none", one, for plain training; "self", a second that is both attention and score of the patches;
"cross", one for each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads.pooled import MU
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.torch_names import BRANCHES, HeadNames


class Judged(NamedTuple):
    """What a head says of every view.

    whole: [b, v, k] logits meant for the whole image.
    attention: [b, v, k] how much a patch resembles each class, or None.
    score: [b, v, k] a patch's evidence for each class, or None.
    counterfactual: [b, v, k] what `whole` owes to the mean feature, or None.
    cosine: [b, v] of the features with the mean feature, or None.
    """

    whole: Any
    attention: Any = None
    score: Any = None
    counterfactual: Any = None
    cosine: Any = None


class LinearHead(nn.Module):
    """A linear layer for each branch, on pooled features [b, v, d].

    Attributes:
        num_classes: k.
        attention: a key of `BRANCHES`.
        dtype: of the computation; here it is always float32, see `Linear`.
    """

    num_classes: int
    attention: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        return by_branch(self.attention, lambda name: Linear(self.num_classes, name=name)(features["pooled"]))


class PooledHead(nn.Module):
    """A classifier of long tails for wholes, linear layers for patches, on pooled features [b, v, d].

    The mean feature of such a classifier is that of whole views, the first of each image.

    Attributes:
        num_classes: k.
        attention: a key of `BRANCHES`.
        classifier: (k, name=…, **options) -> one of `pooled.CLASSIFIERS`.
        options: further fields of it, as (name, value) pairs.
        dtype: of the computation; here it is always float32.
    """

    num_classes: int
    attention: str
    classifier: Callable
    options: tuple[tuple[str, Any], ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool, mu=MU, counts: bool = True) -> Judged:
        """Judge all views.

        Args:
            features: of the backbone.
            train: whether the mean feature is updated.
            mu: share of the mean feature that is kept.
            counts: whether the first views are wholes, whose features are in the mean.
        """
        pooled = features["pooled"]
        wholes = (jnp.arange(pooled.shape[1]) == 0) & counts
        name, *others = BRANCHES[self.attention]
        judge = self.classifier(self.num_classes, name=name, **dict(self.options))
        logits = judge(
            pooled, train=train, mu=mu, counted=jnp.broadcast_to(wholes[None, :], pooled.shape[:2])
        )
        patches = [Linear(self.num_classes, name=other)(pooled) for other in others]
        attention, score = (patches[0], patches[-1]) if patches else (None, None)
        return Judged(logits.factual, attention, score, logits.counterfactual, logits.cosine)


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
        background: judge the background too, and give scores relative to it, as exclusive pooling
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
            raise InputError(f"model.cells {self.stage!r} is not a map of this backbone: {', '.join(maps)}")
        b, v, h, w, d = features[self.stage].shape
        cells = features[self.stage].swapaxes(2, 3).reshape(b, v, w * h, d)
        logits = [Linear(self.num_classes, name=name)(cells) for name in BRANCHES[self.attention][1:]]
        if self.background:
            # Most cells show nothing: begun evenly, every class would be found in some cell.
            of_nothing = Linear(1, name="background")(cells) + BACKGROUND
            logits = [x - of_nothing for x in logits]
        return logits[0], logits[-1]


def by_branch(attention: str, logits_of: Callable):
    """`Judged` from the logits [b, v, k] of each branch by its name."""
    logits = [logits_of(name) for name in BRANCHES[attention]]
    if attention == "none":
        return Judged(logits[0])
    return Judged(logits[0], logits[1], logits[-1])


TORCH = HeadNames(prefix=lambda backbone: backbone.head, branch="fc", bias="bias")
