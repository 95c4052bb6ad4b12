"""Training images of which one patch is masked (not in the paper), so that the masked images of counterfactuals are not
new to the classifier."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cfmlc_jax.causal import effects, views
from cfmlc_jax.classify.patching import Whole

# Folded into the step's key; `classify.update` and `classify.removing` have others.
MASKING = 1


@dataclass(frozen=True)
class Masking:
    """Which patches of training images are masked; labels stay unchanged.

    rate: probability that one random patch of an image is masked.
    null: what replaces the patch, a kind of `causal.effects.null_images`.
    patching: of training; its grid defines the patches.
    """

    rate: float
    null: str
    patching: Whole

    def draw(self, key, images) -> Any:
        """The number of the patch that is masked in each image, −1 for none, by the step's key: int32 [b].

        Args:
            key: random key of the step.
            images: the host's views [b, v, s, s, 3].
        """
        b, size = len(images), images.shape[2]
        count = len(views.patch_boxes(size, self.patching.grid, self.patching.overlap))
        patch_key, rate_key = jax.random.split(jax.random.fold_in(key, MASKING))
        return jnp.where(
            jax.random.bernoulli(rate_key, self.rate, (b,)), jax.random.randint(patch_key, (b,), 0, count), -1
        )

    def apply(self, images, patch, mean_colour):
        """The host's views with the patch masked, in all views that show it: [b, v, s, s, 3].

        Args:
            images: the host's views in [0, 1].
            patch: from `draw`.
            mean_colour: [3], for the null "mean".
        """
        return self.patching.masked(images, effects.null_images(images[:, 0], self.null, mean_colour), patch)
