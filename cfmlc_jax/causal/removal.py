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

OWN = 0.5  # least focus of a class's own cell, relative to its pivot's
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


@shaped("b k, b -> b k")
def kept(labels, classes):
    """Labels of the images after the removal: [b, k] and int [b] -> [b, k]."""
    return labels * (1 - jax.nn.one_hot(classes, labels.shape[1], dtype=labels.dtype))


def remove(images, labels, focus, removal: Draw):
    """The images after the removal: [b, s, s, c] -> same.

    Args:
        images: whole views, squares.
        labels: before the removal, [b, k].
        focus: [b, n², k], whose softmax over the n × n cells is each cell's share in a class's evidence. Cells are numbered
            column by column, as in `causal.views`.
        removal: from `draw`.
    """
    itself, others = _relative(focus, labels, removal.classes, removal.noise.shape[1])
    region = _grown(itself >= OWN)
    area = region.sum(axis=(1, 2), keepdims=True)
    badness = overlap(region, _ITSELF * itself + _OTHERS * others) / area + _CHANCE * removal.noise
    mask = region & (removal.classes >= 0)[:, None, None]
    mask = jax.image.resize(mask.astype(images.dtype), images.shape[:3], "linear")[..., None]
    return images + mask * (shifted(images, badness) - images)


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


def _relative(focus, labels, classes, side):
    """Focus of each cell relative to the pivot's, of the class to remove and of the image's others: two [b, n, n]."""
    focus = focus.astype(jnp.float32)
    relative = jnp.exp(focus - focus.max(axis=1, keepdims=True))
    itself = jnp.take_along_axis(relative, jnp.maximum(classes, 0)[:, None, None], axis=2)[..., 0]
    others = (relative * kept(labels, classes)[:, None]).max(axis=2)
    return tuple(cells.reshape(-1, side, side).swapaxes(1, 2) for cells in (itself, others))


def _grown(region):
    """The region and the cells around it: bool [b, n, n] -> bool [b, n, n]."""
    window, strides = (1, 3, 3), (1, 1, 1)
    return jax.lax.reduce_window(region, False, jax.lax.bitwise_or, window, strides, "SAME")
