"""Where an image's patches come from: one object for each way, and everything that depends on it.

`HostViews` are cut and enlarged by the host and augmented one by one, as in the reference. `DeviceCrops`
are cut on the device from the whole view. `MapCells` are the places of one of the backbone's maps.
`Whole` has none. A further way is a class with what differs from `Whole`.
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
    """No patches: the model sees whole views alone. The other ways derive from it.

    Args:
        grid: patches along one side, for training that masks one of them (`masked`).
        overlap: of those patches, as in `causal.views.patch_boxes`.

    Attributes:
        removable: a patch can be taken out of the image, so that its effect can be asked for.
    """

    removable = False

    def __init__(self, grid: Grid, overlap: float = 0.0):
        self.grid, self.overlap = grid, overlap

    @property
    def host_grid(self) -> Grid | None:
        """The grid whose patches the host adds to the whole view; None for none."""
        return None

    def inputs(self, images: Any) -> Any:
        """What the model sees of the host's views [b, v, s, s, 3]: such an array, or several of other sizes."""
        return images

    def evidence(self, outputs: Outputs) -> Evidence | None:
        """Attention and score logits of the p patches, two [b, p, k]; None without patches."""
        return None

    def boxes(self, size: int) -> list[Box] | None:
        """Boxes of the patches in a whole view of this size, pixels; None without patches."""
        return None

    def grids(self) -> tuple[int, ...] | None:
        """Patches along one side, for each scale; None without patches."""
        return None

    def null_inputs(self, blank: Any) -> Any:
        """What the model sees of null images [b, s, s, 3]."""
        return blank[:, None]

    def without(self, images: Any, blank: Any, patch: Any) -> Any:
        """All patches of images that lack one patch, as the model sees them: [b, p, s, s, 3].

        Args:
            images: the host's views [b, v, s, s, 3].
            blank: null images [1 or b, s, s, 3].
            patch: int [b], the number of the removed patch; negative for an image that lacks none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no patches that can be taken out of an image")

    def masked(self, images: Any, blank: Any, patch: Any) -> Any:
        """The host's views of images that lack one patch: [b, v, s, s, 3] -> the same. Args: as in `without`."""
        return views.remove_one(images[:, 0], blank, patch, self.grid, overlap=self.overlap)[:, None]

    def evidence_without_each(
        self, apply: Callable[[Any], Outputs], images: Any, blank: Any, evidence: Evidence, null: Evidence
    ) -> Evidence:
        """Attention and scores of all patches of the image without each of them: two [b, p, p, k].

        Row p is the image without patch p. There only the patches that overlap p are scored again; one
        removal after another, so that memory holds the views of one.

        Args:
            apply: what the model sees -> its outputs.
            images: the host's views [b, v, s, s, 3].
            blank: null images [1 or b, s, s, 3].
            evidence: of the image as it is.
            null: of the null images.
        """
        count = evidence[0].shape[1]
        left = [jnp.repeat(logits[:, None], count, axis=1) for logits in evidence]
        neighbours = views.neighbours(images.shape[2], self.grid, self.overlap)
        if neighbours.size:

            def scored_again(removal):
                patch, others = removal
                cut = self.without(images, blank, jnp.full(len(images), patch))
                return _as_patches(apply(jnp.take(cut, others, axis=1)))

            again = jax.lax.map(scored_again, (jnp.arange(count), jnp.asarray(neighbours)))
            rows = jnp.arange(count)[:, None]
            left = [
                logits.at[:, rows, neighbours].set(jnp.moveaxis(new, 0, 1))
                for logits, new in zip(left, again, strict=True)
            ]
        attention, score = (
            effects.with_null_removed(logits, of_null) for logits, of_null in zip(left, null, strict=True)
        )
        return attention, score


class HostViews(Whole):
    """Patches are views of their own, behind the whole one, that the host has cut and enlarged."""

    removable = True

    @property
    def host_grid(self):
        """The grid."""
        return self.grid

    def evidence(self, outputs):
        """Of the views behind the first."""
        attention, score = _as_patches(outputs)
        return attention[:, 1:], score[:, 1:]

    def boxes(self, size):
        """Of the grid."""
        return views.patch_boxes(size, self.grid, self.overlap)

    def grids(self):
        """The grid's numbers."""
        return (self.grid,) if isinstance(self.grid, int) else tuple(self.grid)

    def null_inputs(self, blank):
        """The null, and its patches cut on the device."""
        return jnp.concatenate([blank[:, None], self._split(blank)], axis=1)

    def without(self, images, blank, patch):
        """The null's patch in every pixel that owes something to the removed one (`causal.views.without_one`)."""
        return views.without_one(images[:, 1:], self._split(blank), patch, self.grid, overlap=self.overlap)

    def masked(self, images, blank, patch):
        """Masked in the whole view and in the patches."""
        whole = super().masked(images, blank, patch)
        return jnp.concatenate([whole, self.without(images, blank, patch)], axis=1)

    def _split(self, blank):
        return views.split(blank, self.grid, overlap=self.overlap, size=blank.shape[1])


class DeviceCrops(HostViews):
    """Patches are cut on the device from the whole view, and seen at a size of their own.

    Args:
        size: side of the patches as the model sees them, pixels.
    """

    def __init__(self, grid: Grid, overlap: float = 0.0, *, size: int):
        super().__init__(grid, overlap)
        self._size = size

    @property
    def host_grid(self):
        """None: the host makes whole views alone."""
        return None

    def inputs(self, images):
        """The whole views, and the patches."""
        return images[:, :1], self._crops(images[:, 0])

    def null_inputs(self, blank):
        """As of any image."""
        return self.inputs(blank[:, None])

    def without(self, images, blank, patch):
        """Cut anew from the whole view without the patch."""
        return self._crops(views.remove_one(images[:, 0], blank, patch, self.grid, overlap=self.overlap))

    def masked(self, images, blank, patch):
        """Masked in the whole view, from which the patches are cut."""
        return Whole.masked(self, images, blank, patch)

    def _crops(self, whole):
        return views.split(whole, self.grid, overlap=self.overlap, size=self._size)


class MapCells(Whole):
    """Patches are the places of one of the backbone's maps: they cost next to nothing.

    They cannot be taken out of the image.

    Args:
        side: cells along one side of the map.
    """

    def __init__(self, grid: Grid, overlap: float = 0.0, *, side: int):
        super().__init__(grid, overlap)
        self._side = side

    def evidence(self, outputs):
        """Of the first view's map."""
        attention, score = outputs.cells
        return attention[:, 0], score[:, 0]

    def boxes(self, size):
        """Of the map's places."""
        return views.patch_boxes(size, self._side)

    def grids(self):
        """One scale, the map's."""
        return (self._side,)


def _as_patches(outputs):
    """Attention and score logits of all views as patches, two [b, v, k].

    A classifier with one head (PAT-I) scores patches by the logits that it gives to wholes.
    """
    if outputs.attention is None:
        return outputs.whole, outputs.whole
    return outputs.attention, outputs.score
