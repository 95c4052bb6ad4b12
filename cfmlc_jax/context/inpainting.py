"""Holes of pictures filled from their rims."""

import numpy as np
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse import linalg

# Larger holes are filled at half the scale first, so that each takes less than a second.
MOST_PIXELS = 20_000


def harmonic_fill(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The picture with a smooth surface in place of the hole: uint8 [h, w, 3], bool [h, w] -> uint8 [h, w, 3].

    Inside the hole each pixel is the mean of its neighbours (the Laplace equation), and at the rim the surface meets the
    picture; pixels beyond the picture's edge do not count. Outside the hole nothing changes. `causal.owners.continued`
    approaches this surface, for batches on devices.

    Raises:
        ValueError: the hole is the whole picture.
    """
    if hole.all():
        raise ValueError("the hole is the whole picture, which leaves nothing to fill it from")
    if not hole.any():
        return image.copy()
    if hole.sum() > MOST_PIXELS:
        surface = _enlarged(harmonic_fill(*_halved(image, hole)), hole.shape)
    else:
        surface = _solved(image, hole)
    return np.where(hole[..., None], surface, image)


def grown(hole: np.ndarray, pixels: int) -> np.ndarray:
    """The hole with a rim of so many pixels, which takes the object's blurred edge with it: bool [h, w] -> the same."""
    if not pixels:
        return hole
    return ndimage.binary_dilation(hole, ndimage.generate_binary_structure(2, 2), iterations=pixels)


def _solved(image, hole):
    height, width = hole.shape
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(hole.sum())
    y, x = np.nonzero(hole)
    neighbours = np.zeros(len(y))
    known = np.zeros((len(y), 3))
    own_rows, own_columns = [], []
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        beside_y, beside_x = y + down, x + right
        inside = (beside_y >= 0) & (beside_y < height) & (beside_x >= 0) & (beside_x < width)
        neighbours += inside
        own, beside_y, beside_x = np.flatnonzero(inside), beside_y[inside], beside_x[inside]
        other = number[beside_y, beside_x]
        free = other >= 0
        own_rows.append(own[free])
        own_columns.append(other[free])
        known[own[~free]] += image[beside_y[~free], beside_x[~free]]
    rows, columns = np.concatenate(own_rows), np.concatenate(own_columns)
    laplace = sparse.diags(neighbours) - sparse.coo_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(y), len(y))
    )
    surface = np.zeros((height, width, 3))
    surface[hole] = linalg.splu(laplace.tocsc()).solve(known)
    return np.rint(surface).clip(0, 255).astype(np.uint8)


def _halved(image, hole):
    """Means of the known pixels of 2 × 2, and the hole where none is known."""
    height, width = hole.shape
    pad = ((0, height % 2), (0, width % 2))
    known = np.pad(~hole, pad).astype(np.float64)
    colours = np.pad(image, (*pad, (0, 0))) * known[..., None]

    def sums(values):
        return values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]

    count = sums(known)
    means = sums(colours) / np.maximum(count, 1)[..., None]
    return np.rint(means).astype(np.uint8), count == 0


def _enlarged(image, shape):
    height, width = shape
    twice = Image.fromarray(image).resize((2 * image.shape[1], 2 * image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(twice)[:height, :width]
