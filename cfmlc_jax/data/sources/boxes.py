"""Boxes of many images in a few flat arrays: small to pickle, quick to look up."""

from dataclasses import dataclass

import numpy as np


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


def from_sizes(owners, sizes, classes, images: int) -> Boxes:
    """Boxes of `images` images from m annotations in any order.

    Args:
        owners: [m], the image of each box.
        sizes: [m, 4], left, top, width, height in pixels, as COCO and Visual Genome write them.
        classes: [m].
        images: how many images there are; some may own no box.
    """
    owners = np.asarray(owners, np.int64)
    left_top, width_height = np.split(np.asarray(sizes, np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.concatenate([left_top, left_top + width_height], axis=1).astype(np.float32)
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], np.arange(images + 1))
    return Boxes(corners[order], np.asarray(classes, np.int32)[order], starts)
