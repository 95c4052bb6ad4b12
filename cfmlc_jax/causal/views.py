"""Views of an image: the whole image, and its patches on a grid.

Patches are numbered column by column (x is the outer loop), as in the reference: patch
``p = i * grid + j`` is at column i, row j. The patches of several grids follow one another.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.shapes import shaped

# Left, top, right and bottom, pixels.
Box = tuple[int, int, int, int]
# Number of patches along one side; several numbers for patches of several scales.
Grid = int | Sequence[int]


def patch_boxes(size: int, grid: Grid, overlap: float = 0.0) -> list[Box]:
    """Boxes (left, top, right, bottom) of the p patches of a square image, grid² for each grid.

    Without overlap a patch's side is ``size // grid``; the remainder at the right and bottom edge
    belongs to no patch, as in the reference. With overlap the side grows until neighbours share that
    fraction of it, and the patches reach from edge to edge.

    Args:
        size: side of the image, pixels.
        grid: number of patches along one side, at least 2.
        overlap: fraction of a patch's side that neighbours share, in [0, 1).

    Raises:
        ValueError: no grid, a grid below 2, an overlap outside [0, 1), or patches without pixels.
    """
    grids = [grid] if isinstance(grid, int) else grid
    if not grids:
        raise ValueError("no grid; patches need at least one grid")
    return [box for each in grids for box in _boxes(size, each, overlap)]


def _boxes(size, grid, overlap):
    if grid < 2:
        raise ValueError(f"grid {grid} is too small; patches need a grid of at least 2")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} is outside [0, 1)")
    side = int(size / (grid - (grid - 1) * overlap) + 1e-9)
    if side < 1:
        raise ValueError(f"a grid of {grid} on {size} pixels has patches without pixels")
    if overlap:
        starts = [round(i * (size - side) / (grid - 1)) for i in range(grid)]
    else:
        starts = [i * side for i in range(grid)]
    return [(x, y, x + side, y + side) for x in starts for y in starts]


def position(patch: int, grid: Grid) -> tuple[int, int, int]:
    """Grid, column and row of the patch with a number.

    Raises:
        ValueError: no patch has that number.
    """
    number = patch
    for each in [grid] if isinstance(grid, int) else grid:
        if 0 <= number < each**2:
            return each, number // each, number % each
        number -= each**2
    raise ValueError(f"there is no patch {patch} in a grid of {grid}")


@shaped("b h w c -> b p s s c")
def split(images, grid: Grid, *, overlap: float = 0.0, size: int):
    """Patches of images, all resized to one size: [b, h, h, c] -> [b, p, size, size, c].

    The device counterpart of the host's transform: bilinear (antialiased when it shrinks), in
    the images' float type. The host's pixels differ by rounding to uint8 and by a first, bicubic
    resize (REFERENCE: MLC-PAT cuts a bicubic copy).

    Raises:
        ValueError: the images are not square, or as `patch_boxes`.
    """
    b, h, w, c = images.shape
    if h != w:
        raise ValueError(f"images of {h} x {w} pixels are not square")
    shape = (b, size, size, c)
    patches = [images[:, y0:y1, x0:x1] for x0, y0, x1, y1 in patch_boxes(h, grid, overlap)]
    # A patch that has this size already is returned unchanged.
    return jnp.stack([jax.image.resize(x, shape, "bilinear", antialias=True) for x in patches], axis=1)


def neighbours(size: int, grid: Grid, overlap: float = 0.0) -> np.ndarray:
    """Numbers of the other patches that share pixels with each patch: int [p, m].

    m is the largest number of neighbours; a patch with fewer has its row filled with its own number. For
    one grid without overlap m is 0.

    Args:
        size: side of the image, pixels.
        grid: as in `patch_boxes`.
        overlap: as in `patch_boxes`.
    """
    boxes = patch_boxes(size, grid, overlap)
    others = [[q for q, box in enumerate(boxes) if q != p and _meet(box, own)] for p, own in enumerate(boxes)]
    most = max(len(row) for row in others)
    return np.array([[*row, *[p] * (most - len(row))] for p, row in enumerate(others)], np.int32)


def _meet(one: Box, other: Box) -> bool:
    return all(max(one[i], other[i]) < min(one[i + 2], other[i + 2]) for i in (0, 1))


@shaped("b h w c, *, b -> b h w c")
def remove_one(images, null, patch, grid: Grid, *, overlap: float = 0.0):
    """Images without one chosen patch each: [b, h, h, c] and int [b] -> [b, h, h, c].

    Args:
        images: whole views.
        null: pixels that replace the patch, broadcastable to the images.
        patch: number of the patch; negative: the image is unchanged.
        grid: as in `patch_boxes`.
        overlap: as in `patch_boxes`.
    """
    return jnp.where(_removed(images.shape[1], patch, grid, overlap)[..., None], null, images)


@shaped("b p s s c, _ p s s c, b -> b p s s c")
def without_one(patches, null_patches, patch, grid: Grid, *, overlap: float = 0.0):
    """Patches, cut already, of images without one chosen patch: [b, p, s, s, c] and int [b] -> [b, p, s, s, c].

    The host cut these patches from a view of side s and enlarged them to s. Every pixel that depends on the
    removed box is replaced by the null's, so that nothing of the box is left; patches cut again from the
    image without the box would differ where pixels blend at its edge. The removed patch becomes the null's,
    and patches that do not touch the box are unchanged.

    Args:
        patches: patches as the host cut them.
        null_patches: the patches of the null, [1 or b, p, s, s, c].
        patch: as in `remove_one`.
        grid: as in `patch_boxes`.
        overlap: as in `patch_boxes`.
    """
    size = patches.shape[2]
    removed = _removed(size, patch, grid, overlap)[..., None].astype(jnp.float32)
    return jnp.where(split(removed, grid, overlap=overlap, size=size) > 0, null_patches, patches)


def _removed(size, patch, grid, overlap):
    """Pixels of each image's chosen patch: int [b] -> bool [b, size, size]; none for a negative number."""
    return _inside(size, grid, overlap)[patch] & (patch >= 0)[:, None, None]


def _inside(size, grid, overlap):
    """Pixels of each patch: bool [p, size, size]."""
    rows = jnp.arange(size)[:, None]
    columns = jnp.arange(size)[None, :]
    return jnp.stack(
        [
            (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
            for x0, y0, x1, y1 in patch_boxes(size, grid, overlap)
        ]
    )
