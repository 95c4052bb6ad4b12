"""The annotated boxes of a split, with the sizes of their images, for localisation."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.boxes import Boxed, Boxes
from cfmlc_jax.data.views.decode import header
from cfmlc_jax.data.views.metadata import UPRIGHT


def boxes_of(source: Source, *, threads: int, exif: bool) -> Boxes | None:
    """The boxes of a split, with the sizes of all images that have boxes; None if the data set has no boxes.

    Image headers are read where the annotations lack the image size, and with `exif` for all images that
    have boxes.

    Args:
        source: the split.
        threads: number of threads that read headers.
        exif: images are rotated by their EXIF orientation. Annotations do not rotate with them, so the boxes
            of rotated images are left out. TIFF images are always rotated.

    Raises:
        InputError: a header cannot be read.
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
    """The m boxes of a class in an image, as fractions of its sides: [m][4]."""
    corners, classes = boxes.of_image(image)
    own = corners[classes == label].astype(np.float64)
    return (own / np.tile(boxes.sizes[image], 2)).clip(0, 1).tolist()


def _header(source: Source, image: int, exif: bool) -> tuple[tuple[int, int], bool]:
    """The stored width and height of an image, and whether it is shown upright as stored."""
    record = source[image]
    data = record["image"]
    if isinstance(data, np.ndarray):
        return (data.shape[1], data.shape[0]), True
    # The pixels are not decoded.
    picture, orientation = header(data, record.get("where", record["id"]), exif=exif)
    return picture.size, orientation == UPRIGHT
