"""Boxes of many images in a few flat arrays, which are small to pickle and quick to look up.

Boxes are used for localisation only. An unusable box is therefore no error: it is excluded and reported.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cfmlc_jax.data.sources.fields import shown

# Greatest coordinate, pixels; no image is larger, and float32 still represents every pixel up to it.
FARTHEST = 2**24

Size = tuple[float, float]


@dataclass(frozen=True)
class Boxes:
    """The m boxes of n images.

    corners: float32 [m, 4], left, top, right, bottom in pixels of the image as stored.
    classes: int32 [m].
    images: int64 [m], the image of each box, ascending.
    sizes: int64 [n, 2], width and height of each image as stored; 0 if only the image file has them.
    left_out: one line about unusable boxes, which are excluded; "" if there are none.
    """

    corners: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    sizes: np.ndarray
    left_out: str = ""

    def of_image(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Corners [m, 4] and classes [m] of one image."""
        own = slice(*np.searchsorted(self.images, [image, image + 1]))
        return self.corners[own], self.classes[own]

    def at(self, positions) -> "Boxes":
        """The boxes of the images at given positions [n], which become images 0 … n − 1."""
        positions = np.asarray(positions, np.int64)
        starts, stops = np.searchsorted(self.images, positions), np.searchsorted(self.images, positions + 1)
        rows = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        kept = np.concatenate([np.zeros(0, np.int64), *rows])
        owners = np.repeat(np.arange(len(positions)), stops - starts)
        return replace(
            self,
            corners=self.corners[kept],
            classes=self.classes[kept],
            images=owners,
            sizes=self.sizes[positions],
        )


@runtime_checkable
class Boxed(Protocol):
    """A source that may have boxes."""

    def boxes(self) -> Boxes | None:
        """The boxes of its images, possibly read from files now; None if the data set has none."""


class LeftOut:
    """The number of excluded boxes, and the reason for the first."""

    def __init__(self):
        self.count = 0
        self.first = ""

    def add(self, where: str, reason: str) -> None:
        """Count one excluded box."""
        if not self.count:
            self.first = f"{where}: {reason}"
        self.count += 1

    def __str__(self) -> str:
        return f"boxes left out of localisation: {self.count:,}, first {self.first}" if self.count else ""


def reason_against(box: Any, size: Size | None = None) -> str:
    """Why a box [left, top, width, height] cannot be used; "" if it can.

    A box may reach beyond its image, and may be empty.

    Args:
        box: the annotated box, in pixels.
        size: width and height of its image, if known.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        return f"the box {shown(box)} is not 4 numbers"
    left, top, width, height = box
    if width < 0 or height < 0:
        return f"the box {shown(box)} has a negative side"
    if any(abs(side) > FARTHEST for side in box):
        return f"the box {shown(box)} is outside any image"
    if size and (left >= size[0] or top >= size[1] or left + width < 0 or top + height < 0):
        return f"the box {shown(box)} is outside its image of {size[0]:g} x {size[1]:g}"
    return ""


def size_of(width: Any, height: Any) -> Size | None:
    """An image's (width, height) if both are usable numbers, else None."""
    return (
        (width, height)
        if all(_is_number(side) and 0 < side <= FARTHEST for side in (width, height))
        else None
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def from_annotations(owners, boxes, classes, sizes: Sequence[Size | None], left_out: str = "") -> Boxes:
    """Boxes of n images, from m annotations in any order.

    Args:
        owners: [m], the image of each box.
        boxes: [m, 4], left, top, width, height in pixels, as COCO and Visual Genome write them.
        classes: [m].
        sizes: width and height of each of the n images; None if annotations lack them.
        left_out: see `Boxes`.
    """
    owners = np.asarray(owners, np.int64)
    left_top, width_height = np.split(np.asarray(boxes, np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.concatenate([left_top, left_top + width_height], axis=1).astype(np.float32)
    order = np.argsort(owners, kind="stable")
    whole = [size if size and all(float(side).is_integer() for side in size) else (0, 0) for size in sizes]
    return Boxes(
        corners=corners[order],
        classes=np.asarray(classes, np.int32)[order],
        images=owners[order],
        sizes=np.array(whole, np.int64).reshape(-1, 2),
        left_out=left_out,
    )
