"""Counterfactual training images: one class is removed where the classifier itself finds it, with its label.

What is left is the context of the class without the class, with everything else equal. The region of a class is that of
the cells with the most focus of the class, and of the cells around them. It is filled with another part of the same
image, in which the class is not, so that the fill is as real as the rest.

This needs a classifier whose cells know their classes. As long as labels cannot tell which of two classes is which, it
removes either: decorrelate the labels first (`causal.decorrelation`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped

OWN = 0.7  # least focus of a class's own cell, relative to its pivot's
# What makes a fill bad: the class itself; another class; and chance, so that images have different fills.
_ITSELF, _OTHERS, _CHANCE = 4.0, 1.0, 0.2


class Draw(NamedTuple):
    """What is random in the removals of a batch.

    classes: int32 [b], the class to remove from each image; −1: none.
    noise: float32 [b, n, n] in [0, 1), for the choice of the fill.
    """

    classes: Any
    noise: Any


def draw(key, labels, *, rate: float, side: int) -> Draw:
    """A class to remove from each image, uniformly among its labels.

    Args:
        key: random key.
        labels: 0 or 1, [b, k].
        rate: probability that an image with a label loses one.
        side: n, the number of cells along one side.
    """
    class_key, rate_key, noise_key = jax.random.split(key, 3)
    lots = jax.random.uniform(class_key, labels.shape) + (labels > 0)
    loses = (labels > 0).any(axis=1) & jax.random.bernoulli(rate_key, rate, labels.shape[:1])
    return Draw(
        jnp.where(loses, jnp.argmax(lots, axis=1), -1).astype(jnp.int32),
        jax.random.uniform(noise_key, (len(labels), side, side)),
    )


def remove(images, labels, focus, removal: Draw):
    """The images after the removal, and their labels: [b, s, s, c] and [b, k].

    Another class goes with the one that is removed if most of its focus is in the same region.

    Args:
        images: whole views, squares.
        labels: before the removal, [b, k].
        focus: [b, n², k], whose softmax over the n × n cells is each cell's share in a class's evidence. Cells are numbered
            column by column, as in `causal.views`.
        removal: from `draw`.
    """
    side = removal.noise.shape[1]
    focus = focus.astype(jnp.float32).reshape(-1, side, side, focus.shape[2]).swapaxes(1, 2)
    # Relative to the pivots: of the class to remove, and of the image's other classes.
    relative = jnp.exp(focus - focus.max(axis=(1, 2), keepdims=True))
    itself = jnp.take_along_axis(relative, jnp.maximum(removal.classes, 0)[:, None, None, None], axis=3)[
        ..., 0
    ]
    removed = jax.nn.one_hot(removal.classes, labels.shape[1], dtype=labels.dtype)
    others = (relative * (labels * (1 - removed))[:, None, None]).max(axis=3)

    region = _grown(itself >= OWN)
    area = region.sum(axis=(1, 2), keepdims=True)
    badness = overlap(region, _ITSELF * itself + _OTHERS * others) / area + _CHANCE * removal.noise
    region &= (removal.classes >= 0)[:, None, None]
    mask = jax.image.resize(region.astype(images.dtype), images.shape[:3], "linear")[..., None]
    gone = (relative * region[..., None]).sum(axis=(1, 2)) > relative.sum(axis=(1, 2)) / 2
    return images + mask * (shifted(images, badness) - images), labels * (1 - removed) * ~gone


@shaped("b h h, b h h -> b h h")
def overlap(region, badness):
    """The badness in the region moved by each (y, x), which wraps around: two [b, n, n] -> float32 [b, n, n]."""
    spectrum = jnp.conj(jnp.fft.rfft2(region.astype(jnp.float32))) * jnp.fft.rfft2(badness)
    return jnp.fft.irfft2(spectrum, region.shape[1:])


@shaped("b h h c, b n n -> b h h c")
def shifted(images, badness):
    """Each image, shifted by the cells (y, x) of least badness, so that what was at (y, x) is at the origin.

    Args:
        images: [b, s, s, c].
        badness: of each shift, [b, n, n].
    """
    size, side = images.shape[1], badness.shape[1]
    shift = jnp.argmin(badness.reshape(len(badness), -1), axis=1)
    pixels = jnp.stack([shift // side, shift % side], axis=1) * size // side
    return jax.vmap(lambda image, by: jnp.roll(image, -by, axis=(0, 1)))(images, pixels)


def _grown(region):
    """The region and the cells around it: bool [b, n, n] -> bool [b, n, n]."""
    window, strides = (1, 3, 3), (1, 1, 1)
    return jax.lax.reduce_window(region, False, jax.lax.bitwise_or, window, strides, "SAME")
