"""Features of regions from a map of a whole image."""

import numpy as np


def pool(features, boxes, grid: int) -> np.ndarray:
    """A grid of features in each box: map [h, w, c], boxes [r, 4] -> float32 [r, grid, grid, c].

    A feature is interpolated linearly at the centre of each of the grid's cells, as by RoIAlign with one sample for a cell
    (He et al., ICCV 2017). The centre of the map's first cell is half a cell from its corner.

    Args:
        features: of the image.
        boxes: left, top, right, bottom as fractions of the image's sides.
        grid: cells along each side.
    """
    features, boxes = np.asarray(features, np.float32), np.asarray(boxes, np.float32)
    height, width, _ = features.shape
    steps = (np.arange(grid, dtype=np.float32) + 0.5) / grid
    x, y = (
        boxes[:, axis, None] + steps * (boxes[:, axis + 2, None] - boxes[:, axis, None]) for axis in (0, 1)
    )
    left, right, x_share = _neighbours(x, width)
    top, bottom, y_share = _neighbours(y, height)

    def row(place):
        return (1 - x_share)[:, None, :, None] * features[place[:, :, None], left[:, None]] + x_share[
            :, None, :, None
        ] * features[place[:, :, None], right[:, None]]

    return (1 - y_share)[:, :, None, None] * row(top) + y_share[:, :, None, None] * row(bottom)


def _neighbours(fraction, size):
    """The two nearest cells along a side of the map, and the share of the second."""
    place = (fraction * size - 0.5).clip(0, size - 1)
    first = np.floor(place).astype(int)
    return first, np.minimum(first + 1, size - 1), place - first
