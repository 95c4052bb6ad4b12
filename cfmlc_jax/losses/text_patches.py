"""Grids of patches from inside an object: the target of the texture generator's style loss.

Sauer & Geiger (ICLR 2021, arXiv:2101.06046, appendix): patches well inside the mask show texture without shape.
They are laid out in a grid, and the texture generator is trained to match the grid's style.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.shapes import shaped

# Pixels that images and masks are resized to before patches are cut.
SIZE = 128
# Number of best patches of an image, from which the grid's patches are drawn.
BEST = 100
# Patches along one side of the grid.
GRID = 6


@shaped("b h w c, b h w 1, b _ -> b h w c")
def patch_grids(images, mask, picks, *, patch: int = 15):
    """Grids of 6×6 patches from inside the mask, at the images' size: [b, h, w, c], [b, h, w, 1], [b, 36] -> [b, h, w, c].

    The result is a target; the caller must stop its gradients.

    Args:
        images: images from which patches are cut.
        mask: how much each pixel belongs to the object.
        picks: indices into each image's `ranking` of 100 patches, from `draw_picks`.
        patch: side of a patch in pixels, in an image resized to 128; an even number is raised by 1.
    """
    places = jnp.take_along_axis(ranking(mask, patch=patch), picks, axis=1)
    return grids_of_places(images, places, patch=patch)


def draw_picks(key, b: int):
    """Indices into the ranking, uniform with replacement: key -> [b, 36]."""
    return jax.random.randint(key, (b, GRID**2), 0, BEST)


@shaped("b h w 1 -> b _")
def ranking(mask, *, patch: int = 15):
    """The 100 patches with the largest mean mask, in ascending order: [b, h, w, 1] -> int [b, 100].

    A patch is identified by the index of its upper left corner, counted row by row over the corners of all
    patches that lie completely inside the mask of 128 × 128 pixels.
    """
    patch = _odd(patch)
    small = resize_bicubic(mask.astype(jnp.promote_types(mask.dtype, jnp.float32)), (SIZE, SIZE))
    sums = jax.lax.reduce_window(small[..., 0], 0.0, jax.lax.add, (1, patch, patch), (1, 1, 1), "VALID")
    return jnp.argsort(sums.reshape(len(mask), -1), axis=1)[:, -BEST:]


@shaped("b h w c, b _ -> b h w c")
def grids_of_places(images, places, *, patch: int = 15):
    """Grids as in `patch_grids`, from patches identified as in `ranking`: [b, h, w, c], [b, 36] -> [b, h, w, c]."""
    patch = _odd(patch)
    b, h, w, c = images.shape
    small = resize_bicubic(images, (SIZE, SIZE))
    rows, columns = jnp.divmod(places, SIZE - patch + 1)
    cut = functools.partial(_cut, patch=patch)
    patches = jax.vmap(jax.vmap(cut, (None, 0, 0)))(small, rows, columns)
    grid = patches.reshape(b, GRID, GRID, patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return resize_bicubic(grid.reshape(b, GRID * patch, GRID * patch, c), (h, w))


def _cut(image, row, column, *, patch):
    return jax.lax.dynamic_slice(image, (row, column, 0), (patch, patch, image.shape[-1]))


def _odd(patch):
    if not 1 <= patch <= SIZE - 10:  # 10: 11 × 11 places at least, to rank 100
        raise InputError(f"patches of {patch} pixels cannot be cut of {SIZE}; take 1 to {SIZE - 10}")
    return patch + 1 - patch % 2


@shaped("b h w c -> b _ _ c")
def resize_bicubic(images, size):
    """Images resized by cubic interpolation without antialiasing, as in PyTorch: [b, h, w, c] -> [b, *size, c].

    Keys' kernel with a = −3/4 at half-pixel centres; border pixels are repeated. `jax.image.resize`
    uses another kernel (a = −1/2), ignores pixels outside instead, and blurs when it shrinks.
    """
    rows, columns = (
        jnp.asarray(_cubic_weights(before, after), images.dtype)
        for before, after in zip(images.shape[1:3], size)
    )
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("Hh,Ww,bhwc->bHWc", rows, columns, images)


@functools.cache
def _cubic_weights(before, after):
    """Weight of every input pixel in every output pixel along one side: float32 [after, before]."""
    centres = (np.arange(after) + 0.5) * before / after - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((after, before))
    for tap in range(4):
        share = _cubic(np.abs(centres - (first + tap)))
        np.add.at(weights, (np.arange(after), np.clip(first + tap, 0, before - 1)), share)
    return weights.astype(np.float32)


def _cubic(distance, a=-0.75):
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
