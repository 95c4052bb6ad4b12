"""The boxes of a whole split and the sizes of its pictures, where its data set has boxes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.data.sources import Record, Source
from cfmlc_jax.data.views.decode import header
from cfmlc_jax.data.views.metadata import UPRIGHT


@dataclass(frozen=True)
class SplitBoxes:
    """Boxes of n images.

    corners: for each image float32 [m, 4], left, top, right, bottom in pixels as stored.
    classes: for each image int32 [m].
    sizes: int64 [n, 2], width and height of each picture as stored.
    """

    corners: list[np.ndarray]
    classes: list[np.ndarray]
    sizes: np.ndarray


def boxes_of(source: Source, *, threads: int, exif: bool) -> SplitBoxes | None:
    """The split's boxes and picture sizes, from the headers of its files; None where it has no boxes.

    Args:
        source: the split.
        threads: that read.
        exif: pictures are turned by their EXIF orientation; boxes of those that turn are left out,
            for they do not turn along.
    """
    if "boxes" not in source[0]:
        return None
    with ThreadPoolExecutor(threads) as pool:
        rows = list(pool.map(lambda index: _read(source[index], exif), range(len(source))))
    corners, classes, sizes = zip(*rows, strict=True)
    return SplitBoxes(list(corners), list(classes), np.array(sizes, np.int64))


def _read(record: Record, exif: bool):
    image = record["image"]
    if isinstance(image, np.ndarray):
        return record["boxes"], record["box_classes"], (image.shape[1], image.shape[0])
    # The pixels are not decoded.
    picture, orientation = header(image, record.get("where", record["id"]), exif=exif)
    kept = slice(None) if orientation == UPRIGHT else slice(0, 0)
    return record["boxes"][kept], record["box_classes"][kept], picture.size
