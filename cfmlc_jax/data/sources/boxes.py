"""Boxes of many images in a few flat arrays: small to pickle, quick to look up.

Boxes serve localisation alone, so that one that cannot be used ends no run: it is left out and reported.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfmlc_jax.data.sources.fields import shown

# Pixels; no picture reaches farther, and float32 still tells neighbours apart.
FARTHEST = 2**24


@dataclass(frozen=True)
class Boxes:
    """The m boxes of n images, image after image.

    corners: float32 [m, 4], left, top, right, bottom in pixels of the image as stored.
    classes: int32 [m].
    starts: int64 [n + 1]; image i owns the boxes from starts[i] up to starts[i + 1].
    """

    corners: np.ndarray
    classes: np.ndarray
    starts: np.ndarray

    def of(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Corners [n, 4] and classes [n] of one image."""
        start, stop = self.starts[image], self.starts[image + 1]
        return self.corners[start:stop].copy(), self.classes[start:stop].copy()


class LeftOut:
    """How many boxes are left out, and what is wrong with the first."""

    def __init__(self):
        self.count = 0
        self.first = ""

    def add(self, where: str, reason: str) -> None:
        """Count one."""
        if not self.count:
            self.first = f"{where}: {reason}"
        self.count += 1

    def __str__(self) -> str:
        return f"boxes left out of localisation: {self.count:,}, first {self.first}" if self.count else ""


def reason_against(box: Any, size: tuple[float, float] | None = None) -> str:
    """What is wrong with a box [left, top, width, height], "" if nothing.

    A box may reach beyond its picture, and may be empty.

    Args:
        box: as annotated, in pixels.
        size: width and height of its picture, where they are known.
    """
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        return f"the box {shown(box)} is not 4 numbers"
    left, top, width, height = box
    if width < 0 or height < 0:
        return f"the box {shown(box)} has a negative side"
    if any(abs(side) > FARTHEST for side in box):
        return f"the box {shown(box)} is outside of any picture"
    if size and (left >= size[0] or top >= size[1] or left + width < 0 or top + height < 0):
        return f"the box {shown(box)} is outside of its picture of {size[0]:g} x {size[1]:g}"
    return ""


def size_of(width: Any, height: Any) -> tuple[float, float] | None:
    """A picture's width and height, if they can be sizes of a picture."""
    return (
        (width, height)
        if all(_is_number(side) and 0 < side <= FARTHEST for side in (width, height))
        else None
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def from_sizes(owners, sizes, classes, images: int) -> Boxes | None:
    """Boxes of `images` images from m annotations in any order; None if there are no annotations.

    Args:
        owners: [m], the image of each box.
        sizes: [m, 4], left, top, width, height in pixels, as COCO and Visual Genome write them.
        classes: [m].
        images: how many images there are; some may own no box.
    """
    if not len(owners):
        return None
    owners = np.asarray(owners, np.int64)
    left_top, width_height = np.split(np.asarray(sizes, np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.concatenate([left_top, left_top + width_height], axis=1).astype(np.float32)
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(images + 1))
    return Boxes(corners[order], np.asarray(classes, np.int32)[order], starts)
