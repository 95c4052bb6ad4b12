"""Views of an image: the whole and its patches on a grid.

Patches are numbered column by column (x is the outer loop), as in the reference: patch
``p = i * grid + j`` is at column i, row j.
"""

import jax
import jax.numpy as jnp

Cell = tuple[int, int, int, int]


def cells(size: int, grid: int, overlap: float = 0.0) -> list[Cell]:
    """Pixel boxes (left, top, right, bottom) of the grid² equal patches of a square image.

    Without overlap a patch's side is ``size // grid``; what the division leaves over at the right
    and bottom edge belongs to no patch, as in the reference. With overlap the side grows until
    neighbours share that fraction of it, and the patches reach from edge to edge.

    Args:
        size: side of the image, pixels.
        grid: patches along one side, at least 2.
        overlap: shared fraction of a patch's side, in [0, 1).

    Raises:
        ValueError: a grid below 2, an overlap outside [0, 1), or patches of no pixels.
    """
    if grid < 2:
        raise ValueError(f"grid {grid} is too small; patches need a grid of at least 2")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap {overlap} is outside [0, 1)")
    side = int(size / (grid - (grid - 1) * overlap) + 1e-9)
    if side < 1:
        raise ValueError(f"a grid of {grid} on {size} pixels has patches of no pixels")
    if overlap:
        starts = [round(i * (size - side) / (grid - 1)) for i in range(grid)]
    else:
        starts = [i * side for i in range(grid)]
    return [(x, y, x + side, y + side) for x in starts for y in starts]


def split(images, grid: int, *, overlap: float = 0.0, size: int):
    """Patches of images, each enlarged to a view: [b, h, h, c] -> [b, grid², size, size, c].

    The device counterpart of the host's transform: bilinear (antialiased where it shrinks), in
    the images' float type. The host's pixels differ by its uint8 rounding and its bicubic first
    resize (REFERENCE: MLC-PAT cuts a bicubic copy).

    Raises:
        ValueError: images that are not square, or what `cells` refuses.
    """
    b, h, w, c = images.shape
    if h != w:
        raise ValueError(f"images of {h} x {w} pixels are not square")
    patches = jnp.stack([images[:, y0:y1, x0:x1] for x0, y0, x1, y1 in cells(h, grid, overlap)], axis=1)
    return jax.image.resize(patches, (b, grid * grid, size, size, c), "bilinear", antialias=True)


def remove_patches(images, null, grid: int, *, overlap: float = 0.0):
    """Images with one patch each replaced by the null's pixels: [b, h, h, c] -> [b, grid², h, h, c].

    Args:
        images: whole views.
        null: what takes a patch's place, broadcastable to the images.
        grid: patches along one side.
        overlap: as in `cells`.
    """
    null = jnp.broadcast_to(null, images.shape)
    rows = jnp.arange(images.shape[1])[:, None]
    columns = jnp.arange(images.shape[2])[None, :]
    inside = jnp.stack(
        [
            (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)
            for x0, y0, x1, y1 in cells(images.shape[1], grid, overlap)
        ]
    )
    return jnp.where(inside[None, :, :, :, None], null[:, None], images[:, None])
