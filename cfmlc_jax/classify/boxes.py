"""The boxes of a whole split and the sizes of its pictures, where its data set has boxes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.boxes import Boxed, Boxes
from cfmlc_jax.data.views.decode import header
from cfmlc_jax.data.views.metadata import UPRIGHT


@dataclass(frozen=True)
class SplitBoxes:
    """The m boxes of n images that localisation can use.

    corners: float32 [m, 4], left, top, right, bottom in pixels as stored.
    classes: int32 [m].
    images: int64 [m], the image of each box, ascending.
    sizes: int64 [n, 2], width and height as stored of each picture with a box.
    left_out: one line about boxes that cannot be used; "" if there are none.
    """

    corners: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    sizes: np.ndarray
    left_out: str = ""

    def fractions(self, image: int, label: int) -> list[list[float]]:
        """The boxes of a class in an image, as fractions of the picture."""
        own = (self.images == image) & (self.classes == label)
        return (self.corners[own].astype(np.float64) / np.tile(self.sizes[image], 2)).clip(0, 1).tolist()


def boxes_of(source: Source, *, threads: int, exif: bool) -> SplitBoxes | None:
    """The split's boxes and picture sizes; None where its data set has no boxes.

    The header of a file is read where annotations do not give the picture's size, and of every picture
    with a box where pictures are turned.

    Args:
        source: the split.
        threads: that read.
        exif: pictures are turned by their EXIF orientation; boxes of those that turn are left out,
            for they do not turn along. TIFF files are turned always.

    Raises:
        InputError: a file whose header has to be read and cannot be.
    """
    boxes = source.boxes() if isinstance(source, Boxed) else None
    if boxes is None:
        return None
    with_boxes = np.unique(boxes.images)
    unknown = with_boxes if exif else with_boxes[~boxes.sizes[with_boxes].all(axis=1)]
    with ThreadPoolExecutor(threads) as pool:
        headers = list(pool.map(lambda image: _header(source, int(image), exif), unknown))
    sizes = boxes.sizes.copy()
    for image, (size, _) in zip(unknown, headers, strict=True):
        sizes[image] = size
    turned = [image for image, (_, upright) in zip(unknown, headers, strict=True) if not upright]
    return _kept(boxes, sizes, ~np.isin(boxes.images, turned))


def _header(source: Source, image: int, exif: bool) -> tuple[tuple[int, int], bool]:
    """A picture's width and height as stored, and whether it stays as it is."""
    record = source[image]
    data = record["image"]
    if isinstance(data, np.ndarray):
        return (data.shape[1], data.shape[0]), True
    # The pixels are not decoded.
    picture, orientation = header(data, record.get("where", record["id"]), exif=exif)
    return picture.size, orientation == UPRIGHT


def _kept(boxes: Boxes, sizes, kept) -> SplitBoxes:
    return SplitBoxes(boxes.corners[kept], boxes.classes[kept], boxes.images[kept], sizes, boxes.left_out)
