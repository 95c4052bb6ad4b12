"""The pixels that a class owns, and images in which the surroundings are continued over them.

A patch gives a class evidence, in nats: that of all patches together is −log(1 − P) (`evidence`). The evidence of a
class, spread over the pixels that its patches see, is a density; where it exceeds a threshold, the pixels belong to the
class. The image without them is what a direct effect compares with: an object removed, all else kept. A constant colour
in the object's place would be evidence of its own, because the classifier has never seen one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal.patches import LEAST, Pooling, patch_weights
from cfmlc_jax.causal.views import Box
from cfmlc_jax.shapes import shaped

# Nats for each patch, above which a pixel belongs to a class.
LEAST_EVIDENCE = 0.1
# Averages over neighbours at each scale of a fill; the coarse scales have done most of the way before.
_SWEEPS = 8


@shaped("b p k, b p k -> b p k")
def evidence(attention, scores, pooling: Pooling):
    """Nats that each patch gives each class: two [b, p, k] -> [b, p, k]; their sum over patches is −log(1 − P).

    Where classes divide the patches, a patch gives −log(1 − share). Elsewhere the evidence of a class is divided among
    the patches by their weights.
    """
    focus = pooling.focus(attention, scores)
    if pooling.background:  # then the focus is the log of the share
        return -jnp.log1p(-jnp.exp(jnp.minimum(focus, -LEAST)))
    return patch_weights(focus) * jax.nn.softplus(pooling.logits(attention, scores))[:, None]


def footprints(boxes: Sequence[Box], size: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """How far each of p patches covers each row and each column of an image: two float32 [p, size].

    Their product is the patch's part in a pixel: 1 inside its box, 0 outside. With `reach` the edge is smoothed by a
    Gaussian.

    Args:
        boxes: of the patches, pixels.
        size: side of the image.
        reach: deviation of the Gaussian, as a share of the side of the box; 0: a sharp edge.
    """
    corners = np.array(boxes, np.float32)
    columns = _interval(corners[:, 0], corners[:, 2], size, reach)
    return _interval(corners[:, 1], corners[:, 3], size, reach), columns


@shaped("b p, p h, p w -> b h w")
def region(evidence, rows, columns):
    """The pixels that belong to a class: [b, p] and the patches' `footprints` -> bool [b, h, w].

    Args:
        evidence: of the class in each patch, nats.
        rows: [p, h].
        columns: [p, w].
    """
    density = jnp.einsum("bp,ph,pw->bhw", evidence, rows, columns, precision="highest")
    return density > LEAST_EVIDENCE


@shaped("b h w c, b h w, c -> b h w c")
def continued(images, removed, colour):
    """Images whose surroundings are continued over removed pixels: [b, h, w, c] -> [b, h, w, c].

    The fill approaches the harmonic one, each pixel the mean of its neighbours, from coarse to fine: the removed
    pixels of a scale start from those of the next coarser one. Other pixels are unchanged. It runs inside compiled
    programs, on batches; `context.inpainting.harmonic_fill` solves for one picture exactly.

    Args:
        images: pixels.
        removed: bool [b, h, w].
        colour: [c], of an image of which nothing is left.
    """
    known = 1 - removed[..., None].astype(images.dtype)
    filled = _filled(known * images, known, colour.astype(images.dtype)[None, None, None])
    return jnp.where(removed[..., None], filled, images)


def _filled(sums, known, colour):
    """The fill at one scale: [b, h, w, c] pixels times the known share of each, [b, h, w, 1] the share -> [b, h, w, c]."""
    _, h, w, _ = sums.shape
    if h == w == 1:
        return sums + (1 - known) * colour
    coarse = _filled(_halved(sums), _halved(known), colour)
    start = jnp.repeat(jnp.repeat(coarse, 2, axis=1), 2, axis=2)[:, :h, :w]

    def sweep(_, image):
        return sums + (1 - known) * _mean_of_neighbours(image)

    return jax.lax.fori_loop(0, _SWEEPS, sweep, sums + (1 - known) * start)


def _halved(image):
    """Means of 2 × 2 pixels; an odd row or column is halved with its own copy."""
    b, h, w, c = image.shape
    even = jnp.pad(image, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    return even.reshape(b, -(-h // 2), 2, -(-w // 2), 2, c).mean(axis=(2, 4))


def _mean_of_neighbours(image):
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    vertical = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1]
    return (vertical + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]) / 4


def _interval(start, end, size, reach):
    """Indicators of intervals of pixels, smoothed: two [p] -> float32 [p, size]."""
    pixels = np.arange(size, dtype=np.float32)
    inside = ((pixels >= start[:, None]) & (pixels < end[:, None])).astype(np.float32)
    if not reach:
        return inside
    offset = pixels[:, None] - pixels
    deviation = reach * (end - start)[:, None, None]
    weights = np.exp(-0.5 * (offset / deviation) ** 2)
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("pyx,px->py", weights, inside)
