"""The annotated boxes of a split, with the sizes of their images, for localisation."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
from jax.experimental import multihost_utils

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.boxes import Boxed, Boxes
from cfmlc_jax.data.views.decode import header
from cfmlc_jax.data.views.metadata import UPRIGHT


def boxes_of(source: Source, *, threads: int, exif: bool) -> Boxes | None:
    """The boxes of a split, with the sizes of all images that have boxes; None if the data set has no boxes.

    COCO and VOC annotate the size of the image as stored, so that no image is read again. Headers are read where
    annotations lack the size (Visual Genome, TIFF files), and with `exif`, which can turn an image, for all
    images that have boxes. Each process reads its part of them, and all processes must call this.

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
    headers = _headers(source, unknown, threads, exif)
    sizes = boxes.sizes.copy()
    sizes[unknown] = headers[:, :2]
    turned = unknown[headers[:, 2] == 0]
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


def _headers(source: Source, images: np.ndarray, threads: int, exif: bool) -> np.ndarray:
    """Width, height and whether it is upright, of each of n images: int64 [n, 3]."""

    def read(image):
        size, upright = _header(source, image, exif)
        return *size, upright

    headers = np.zeros((len(images), 3), np.int64)
    own = slice(jax.process_index(), None, jax.process_count())
    with ThreadPoolExecutor(threads) as pool:
        headers[own] = np.array(list(pool.map(read, images[own].tolist())), np.int64).reshape(-1, 3)
    if jax.process_count() > 1:
        headers = multihost_utils.process_allgather(headers).sum(axis=0)
    return headers


def _header(source: Source, image: int, exif: bool) -> tuple[tuple[int, int], bool]:
    """The stored width and height of an image, and whether it is shown upright as stored."""
    record = source[image]
    data = record["image"]
    if isinstance(data, np.ndarray):
        return (data.shape[1], data.shape[0]), True
    # The pixels are not decoded.
    picture, orientation = header(data, record.get("where", record["id"]), exif=exif)
    return picture.size, orientation == UPRIGHT
