"""The patches of an image of the model's size, as the host cuts them: the same pixels, by a program's operations."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal.views import Grid, patch_boxes
from cfmlc_jax.shapes import shaped

# Half of the bits of Pillow's weights.
_HALF = 11


@shaped("b s s c -> b p s s c")
def host_patches(images, grid: Grid, overlap: float = 0.0):
    """Patches with the pixels of `data.views.patches.split_views`: [b, s, s, c] -> [b, p, s, s, c], values 0 to 255.

    Each patch is enlarged along its rows, rounded to whole levels, then along its columns, and rounded again, as
    Pillow does, with Pillow's weights in fixed point. All pixels are equal.

    Args:
        images: pixels as floats, whole numbers from 0 to 255.
        grid: as in `causal.views.patch_boxes`.
        overlap: as in `causal.views.patch_boxes`.
    """
    size = images.shape[1]
    patches = []
    for left, top, right, bottom in patch_boxes(size, grid, overlap):
        weights = _weights(right - left, size)
        wide = _resampled("byxc,Xx->byXc", images[:, top:bottom, left:right], weights)
        patches.append(_resampled("byxc,Yy->bYxc", wide, weights))
    return jnp.stack(patches, axis=1)


def _resampled(subscripts, pixels, weights):
    """Weighted sums of pixels, rounded to whole levels.

    A float32 holds 24 bits, and pixel times weight has 30. So the weights are split into two halves of 11 bits, whose
    sums are exact.
    """
    high, low = np.divmod(weights, 2**_HALF)
    total = _sums(subscripts, pixels, high) + 2 ** (_HALF - 1)
    if low.any():
        total += jnp.floor(_sums(subscripts, pixels, low) / 2**_HALF)
    return jnp.floor(total / 2**_HALF)


def _sums(subscripts, pixels, weights):
    # At full precision: a TPU would round the operands to 8 bits.
    weights = jnp.asarray(weights, pixels.dtype)
    return jnp.einsum(subscripts, pixels, weights, precision=jax.lax.Precision.HIGHEST)


def _weights(side: int, size: int) -> np.ndarray:
    """Pillow's weights of a bilinear enlargement, int [size, side]; the sum of a row is about 2^22."""
    centres = (np.arange(size) + 0.5) * side / size
    weights = np.zeros((size, side), np.int64)
    for row, centre in zip(weights, centres):
        # The triangle of half-width 1, from the pixels that it covers.
        taps = np.arange(max(0, math.floor(centre - 0.5)), min(side, math.floor(centre + 1.5)))
        triangle = np.maximum(0, 1 - np.abs(taps + 0.5 - centre))
        row[taps] = np.floor(triangle / triangle.sum() * 2 ** (2 * _HALF) + 0.5)
    return weights
