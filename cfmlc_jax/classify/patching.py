"""Where the patches of an image come from: one class for each way.

- `HostViews`: the host cuts the patches, enlarges them and augments each by itself, as in the reference.
- `DeviceCrops`: the device cuts the patches out of the whole view.
- `MapCells`: the patches are the cells of a feature map of the backbone.
- `Whole`: there are no patches.

Each class says what the model sees, where in its outputs the evidence of the patches is, which boxes of the
image they cover, and how to remove a patch for a counterfactual. To add a way, derive a class from `Whole` and
override what differs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cfmlc_jax.causal import effects, views
from cfmlc_jax.causal.views import Box, Grid
from cfmlc_jax.models.classifier import Outputs

Evidence = tuple[Any, Any]


class Whole:
    """No patches: the model sees whole views only. Base class of the other ways.

    Args:
        grid: patches along one side; without patches it is used for masking only (`masked`).
        overlap: of neighbouring patches, as in `causal.views.patch_boxes`.

    Attributes:
        removable: whether a patch can be removed from the image, so that its effect can be computed.
        reach: how far it sees beyond its box, as in `causal.owners.footprints`.
    """

    removable, reach = False, 0.0

    def __init__(self, grid: Grid, overlap: float = 0.0):
        self.grid, self.overlap = grid, overlap

    @property
    def host_grid(self) -> Grid | None:
        """The grid of the patches that the host adds to the whole view; None if it adds none."""
        return None

    def inputs(self, images: Any) -> Any:
        """The model's inputs for the host's views [b, v, s, s, 3]: one such array, or several of different sizes."""
        return images

    def evidence(self, outputs: Outputs) -> Evidence | None:
        """The attention and score logits of the p patches, two [b, p, k]; None without patches."""
        return None

    def boxes(self, size: int) -> list[Box] | None:
        """The boxes of the patches, in pixels of a whole view of this size; None without patches."""
        return None

    def grids(self) -> tuple[int, ...] | None:
        """The number of patches along one side, for each scale; None without patches."""
        return None

    def null_inputs(self, blank: Any) -> Any:
        """The model's inputs for null images [b, s, s, 3]."""
        return blank[:, None]

    def without(self, images: Any, blank: Any, patch: Any) -> Any:
        """All patches, as the model sees them, of the images after one patch was removed: [b, p, s, s, 3].

        Args:
            images: the host's views [b, v, s, s, 3].
            blank: null images [1 or b, s, s, 3].
            patch: int [b], the number of the patch to remove; negative: remove none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no patches that can be removed from an image")

    def masked(self, images: Any, blank: Any, patch: Any) -> Any:
        """The host's views after one patch was removed: [b, v, s, s, 3]. The arguments are those of `without`."""
        return views.remove_one(images[:, 0], blank, patch, self.grid, overlap=self.overlap)[:, None]

    def whole_without_each(self, apply: Callable[[Any], Outputs], images: Any, blank: Any) -> Any:
        """The whole-image logits after each patch in turn was removed: [b, p, k]. The arguments are those of `without`.

        The loop handles one removal at a time, to save memory.
        """
        whole = images[:, 0]
        count = len(views.patch_boxes(whole.shape[1], self.grid, self.overlap))

        def score(patch):
            removed = views.remove_one(
                whole, blank, jnp.full(len(whole), patch), self.grid, overlap=self.overlap
            )
            return apply(removed[:, None]).whole[:, 0]

        return jnp.moveaxis(jax.lax.map(score, jnp.arange(count)), 0, 1)

    def evidence_without_each(
        self, apply: Callable[[Any], Outputs], images: Any, blank: Any, evidence: Evidence, null: Evidence
    ) -> Evidence:
        """The evidence of all patches after each patch in turn was removed: attention and scores, two [b, p, p, k].

        Row p is of the image without patch p. Only the patches that overlap p are scored again. The loop
        handles one removal at a time, to save memory.

        Args:
            apply: the classifier, from model inputs to Outputs.
            images: the host's views [b, v, s, s, 3].
            blank: null images [1 or b, s, s, 3].
            evidence: of the unchanged images.
            null: evidence of the null images.
        """
        count = evidence[0].shape[1]
        without_each = [jnp.repeat(logits[:, None], count, axis=1) for logits in evidence]
        neighbours = views.neighbours(images.shape[2], self.grid, self.overlap)
        if neighbours.size:

            def score_neighbours(removal):
                patch, its_neighbours = removal
                patches = self.without(images, blank, jnp.full(len(images), patch))
                return _as_patches(apply(jnp.take(patches, its_neighbours, axis=1)))

            rescored = jax.lax.map(score_neighbours, (jnp.arange(count), jnp.asarray(neighbours)))
            rows = jnp.arange(count)[:, None]
            without_each = [
                logits.at[:, rows, neighbours].set(jnp.moveaxis(new, 0, 1))
                for logits, new in zip(without_each, rescored, strict=True)
            ]
        attention, score = (
            effects.with_null_removed(logits, null_logits)
            for logits, null_logits in zip(without_each, null, strict=True)
        )
        return attention, score


class HostViews(Whole):
    """Patches are further views of the image: the host cuts and enlarges them, and they follow the whole view."""

    removable = True

    @property
    def host_grid(self):
        """All of the grid."""
        return self.grid

    def evidence(self, outputs):
        """The logits of all views but the first."""
        attention, score = _as_patches(outputs)
        return attention[:, 1:], score[:, 1:]

    def boxes(self, size):
        """The boxes of the grid."""
        return views.patch_boxes(size, self.grid, self.overlap)

    def grids(self):
        """The grid as a tuple."""
        return (self.grid,) if isinstance(self.grid, int) else tuple(self.grid)

    def null_inputs(self, blank):
        """The null images and their patches, which are cut on the device."""
        return jnp.concatenate([blank[:, None], self._split(blank)], axis=1)

    def without(self, images, blank, patch):
        """The host's patches, with the null in all pixels that depend on the removed patch (`causal.views.without_one`)."""
        return views.without_one(images[:, 1:], self._split(blank), patch, self.grid, overlap=self.overlap)

    def masked(self, images, blank, patch):
        """The whole view and the patches, both masked."""
        whole = super().masked(images, blank, patch)
        return jnp.concatenate([whole, self.without(images, blank, patch)], axis=1)

    def _split(self, blank):
        return views.split(blank, self.grid, overlap=self.overlap, size=blank.shape[1])


class DeviceCrops(HostViews):
    """Patches are cut out of the whole view on the device; their size may differ from that of the whole view.

    Args:
        grid: as of `Whole`.
        overlap: as of `Whole`.
        size: side of the patches that the model sees, pixels.
    """

    def __init__(self, grid: Grid, overlap: float = 0.0, *, size: int):
        super().__init__(grid, overlap)
        self._size = size

    @property
    def host_grid(self):
        """None: the host makes whole views only."""
        return None

    def inputs(self, images):
        """Two arrays: the whole views, and the patches."""
        return images[:, :1], self._crops(images[:, 0])

    def null_inputs(self, blank):
        """The same as for any image."""
        return self.inputs(blank[:, None])

    def without(self, images, blank, patch):
        """The patches, cut from the whole view after the removal."""
        return self._crops(views.remove_one(images[:, 0], blank, patch, self.grid, overlap=self.overlap))

    def masked(self, images, blank, patch):
        """The masked whole view, from which the patches will be cut."""
        return Whole.masked(self, images, blank, patch)

    def _crops(self, whole):
        return views.split(whole, self.grid, overlap=self.overlap, size=self._size)


class MapCells(Whole):
    """Patches are the cells of a feature map of the backbone, at almost no cost.

    They cannot be removed from the image.

    Args:
        grid: as of `Whole`.
        overlap: as of `Whole`.
        side: cells along one side of the map.
    """

    reach = 0.625  # chosen on validation scenes (docs/evidence.md)

    def __init__(self, grid: Grid, overlap: float = 0.0, *, side: int):
        super().__init__(grid, overlap)
        self._side = side

    def evidence(self, outputs):
        """The logits of the cells of the whole view's map."""
        attention, score = outputs.cells
        return attention[:, 0], score[:, 0]

    def boxes(self, size):
        """The boxes of the map's cells."""
        return views.patch_boxes(size, self._side)

    def grids(self):
        """One scale: that of the map."""
        return (self._side,)


def _as_patches(outputs):
    """The attention and score logits of all views, taken as patches: two [b, v, k].

    A classifier with one branch (PAT-I) uses its whole-image logits as both.
    """
    if outputs.attention is None:
        return outputs.whole, outputs.whole
    return outputs.attention, outputs.score
