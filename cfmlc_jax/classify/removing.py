"""Training images that lose a class, or exchange it, where the averaged weights find it (`causal.removal`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from cfmlc_jax.causal import removal
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.causal.removal import Draw
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.models.classifier import Outputs

# Folded into the step's key; `classify.update` has its others.
REMOVAL = 3


@dataclass(frozen=True)
class Removal:
    """Which classes are removed from training images.

    rate: probability that an image with a label loses one.
    from_step: the first step with removals; before it the classifier does not know yet where the classes are.
    patching: where the patches come from: cells of a map.
    pooling: of the cells' evidence; its focus says where a class is.
    exchange: probability that a class of another image takes the place of one that is removed.
    """

    rate: float
    from_step: int
    patching: Whole
    pooling: Pooling
    exchange: float = 0.0

    def draw(self, key, labels) -> Draw:
        """What is random in the removals of a batch with these labels [b, k], by the step's key."""
        (side,) = self.patching.grids() or ()
        key = jax.random.fold_in(key, REMOVAL)
        return removal.draw(key, labels, rate=self.rate, side=side, exchange=self.exchange)

    def apply(self, apply: Callable[[Any], Outputs], images, labels, drawn: Draw, step) -> tuple[Any, Any]:
        """The views [b, 1, s, s, 3] and the labels [b, k] after the removals, which are none before `from_step`.

        Args:
            apply: the classifier that finds the classes, from model inputs to Outputs.
            images: views in [0, 1].
            labels: of the views.
            drawn: from `draw`.
            step: int32, the number of steps before this one.
        """

        def removed(images, labels):
            evidence = self.patching.evidence(apply(self.patching.inputs(images)))
            assert evidence is not None, "a removal needs cells"
            whole, labels = removal.remove(images[:, 0], labels, self.pooling.focus(*evidence), drawn)
            return whole[:, None], labels

        return jax.lax.cond(step >= self.from_step, removed, lambda *unchanged: unchanged, images, labels)
