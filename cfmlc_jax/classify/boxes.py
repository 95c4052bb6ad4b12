"""The boxes of a whole split that localisation can use, with the sizes of their pictures."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.boxes import Boxed, Boxes
from cfmlc_jax.data.views.decode import header
from cfmlc_jax.data.views.metadata import UPRIGHT


def boxes_of(source: Source, *, threads: int, exif: bool) -> Boxes | None:
    """The split's boxes, with the size of every picture that has one; None where its data set has no boxes.

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
    kept = ~np.isin(boxes.images, turned)
    return replace(
        boxes,
        corners=boxes.corners[kept],
        classes=boxes.classes[kept],
        images=boxes.images[kept],
        sizes=sizes,
    )


def fractions(boxes: Boxes, image: int, label: int) -> list[list[float]]:
    """The boxes of a class in an image, as fractions of the picture: [m][4]."""
    corners, classes = boxes.of_image(image)
    own = corners[classes == label].astype(np.float64)
    return (own / np.tile(boxes.sizes[image], 2)).clip(0, 1).tolist()


def _header(source: Source, image: int, exif: bool) -> tuple[tuple[int, int], bool]:
    """A picture's width and height as stored, and whether it stays as it is."""
    record = source[image]
    data = record["image"]
    if isinstance(data, np.ndarray):
        return (data.shape[1], data.shape[0]), True
    # The pixels are not decoded.
    picture, orientation = header(data, record.get("where", record["id"]), exif=exif)
    return picture.size, orientation == UPRIGHT
