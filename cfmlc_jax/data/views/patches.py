"""Transform from a record to views: the whole image and its patches, augmented. On the host, with Pillow and uint8.

Pixels are bit-identical to the reference's (REFERENCE: MLC-PAT's TransformPatch). One step is left
out because it has no effect: the reference shuffles the patches, but they are combined symmetrically.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cfmlc_jax.causal.views import Grid, patch_boxes
from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.data.views.randaugment import augment
from cfmlc_jax.data.views.resample import double, to_square
from cfmlc_jax.data.views.variation import varied

# Side of the box of `cutout` as a fraction of a training view's side.
CUTOUT = 0.5


def split_views(image: Image.Image, size: int, grid: Grid | None, overlap: float = 0.0) -> list[Image.Image]:
    """The whole view followed by the patches, each RGB [size, size]; without a grid there are no patches.

    The whole view is squeezed to size x size with an antialiased bilinear filter. For the patches, the image is
    resized to size x size with a *bicubic* filter and cut along `causal.views.patch_boxes` (columns outside, rows
    inside), and each patch is enlarged to size x size with a bilinear filter. Every view is a separate image: the
    reference's resize returns its argument if the size is right already, so that its in-place cutout of
    the whole view appeared in all patches.

    Raises:
        ValueError: `patch_boxes` refuses the grid.
    """
    views = [to_square(image, size, Image.Resampling.BILINEAR)]
    if grid is not None:
        base = to_square(image, size, Image.Resampling.BICUBIC)
        views += [_enlarge(base.crop(box), size) for box in patch_boxes(size, grid, overlap)]
    return views


def _enlarge(patch, size):
    if patch.width * 2 == size:  # a 2 x 2 grid: the same pixels, computed faster
        return double(patch)
    return patch.resize((size, size), Image.Resampling.BILINEAR)


def cutout(view: Image.Image, fraction: float, generator: np.random.Generator) -> Image.Image:
    """The view with a box of random centre covered by a random colour: RGB [h, w] -> RGB [h, w]."""
    centre = generator.integers(0, (view.height, view.width))
    colour = generator.integers(0, 256, 3)
    return cover(view, (int(centre[0]), int(centre[1])), tuple(colour.tolist()), fraction)


def cover(
    view: Image.Image, centre: tuple[int, int], colour: tuple[int, int, int], fraction: float
) -> Image.Image:
    """A copy of the view with a box covered by one colour: RGB [h, w] -> RGB [h, w].

    The box has ``2 * (int(fraction * side + 0.5) // 2) + 1`` pixels per side (its far edge is painted), minus
    the part outside. x is limited by the height and y by the width, as in the reference; for our square views
    there is no difference.

    Args:
        view: uint8 RGB.
        centre: (x, y) pixels.
        colour: (red, green, blue), 0 to 255.
        fraction: side of the box as a fraction of the view's side, 0 to 1.
    """
    left, right = _span(centre[0], view.height, fraction)
    top, bottom = _span(centre[1], view.width, fraction)
    covered = view.copy()
    covered.paste(colour, (left, top, right + 1, bottom + 1))
    return covered


def _span(centre, side, fraction):
    half = int(fraction * side + 0.5) // 2
    return max(centre - half, 0), min(centre + half, side)


class Transform(Protocol):
    """The interface of transforms from a record to views: `ToViews`, `crops.PaddedCrop`, `crops.AreaCrop`."""

    @property
    def size(self) -> int:
        """Side of a view, pixels."""

    @property
    def grid(self) -> Grid | None:
        """Number of patches along one side, or several numbers; None for the whole view only."""

    @property
    def num_views(self) -> int:
        """v, the number of views."""

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The views of an image of any size as in evaluation, without augmentation: v of RGB [size, size]."""

    def __call__(self, record: Record, generator: np.random.Generator | None = None) -> dict[str, Any]:
        """{"views": uint8 [v, size, size, 3], "labels": float32 [k], "id": str} of one record."""


@dataclasses.dataclass(frozen=True)
class ToViews:
    """The transform of a record to the whole view and its patches.

    size: side of a view, pixels.
    grid: number of patches along one side, or several numbers; None for the whole view only.
    overlap: fraction of a patch's side that neighbours share, [0, 1).
    augment: cutout and RandAugment on every view separately (training).
    shift: the image is shifted by up to this fraction of its side, along each axis, before it is cut (training).
    gain: each channel is multiplied by a factor in 1 ± gain (training).
    exif: turn images upright by their EXIF orientation.

    Raises:
        ValueError: from the constructor, if the size or the patches have no pixels.
    """

    size: int
    grid: Grid | None = None
    overlap: float = 0.0
    augment: bool = False
    exif: bool = False
    shift: float = 0.0
    gain: float = 0.0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size {self.size} has no pixels")
        if self.grid is not None:
            patch_boxes(self.size, self.grid, self.overlap)

    @property
    def num_views(self) -> int:
        """v: the whole and its patches."""
        return 1 + (0 if self.grid is None else len(patch_boxes(self.size, self.grid, self.overlap)))

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The whole view and its patches, each RGB [size, size], without augmentation."""
        return split_views(image, self.size, self.grid, self.overlap)

    def __call__(self, record: Record, generator: np.random.Generator | None = None) -> dict:
        """{"views": uint8 [v, size, size, 3], "labels": float32 [k], "id": str} of one record.

        Args:
            record: a source's record.
            generator: the record's random generator; used only for augmentation.

        Raises:
            InputError: `decode` refuses the image.
            TypeError: augmentation without a generator.
        """
        if (self.augment or self.shift or self.gain) and generator is None:
            raise TypeError("augmentation needs a generator")
        image = decode(record["image"], record.get("where", record["id"]), exif=self.exif)
        if generator is not None and (self.shift or self.gain):
            image = varied(image, self.shift, self.gain, generator)
        images = self.cut(image)
        views = np.empty((len(images), self.size, self.size, 3), np.uint8)
        for row, view in zip(views, images):
            if generator is not None and self.augment:
                view = augment(cutout(view, CUTOUT, generator), generator)
            row[...] = np.asarray(view)
        return {"views": views, "labels": np.asarray(record["labels"], np.float32), "id": record["id"]}
