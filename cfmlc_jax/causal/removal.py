"""Counterfactual training images: a class is removed where the classifier itself finds it, with its label.

What is left is the context of the class without the class, with everything else equal. The region of a class is that of
the cells with the most focus of the class, and of the cells around them. It is filled with another part of the same
image, in which the class is not, so that the fill is as real as the rest; or a class of another image takes its place,
with the label.

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
    donated: int32 [b], the class of the image before this one in the batch that takes its place; −1: none. None: no image
        has another's class.
    """

    classes: Any
    noise: Any
    donated: Any = None


def draw(key, labels, *, rate: float, side: int, exchange: float = 0.0) -> Draw:
    """A class to remove from each image, uniformly among its labels, and one to put in its place.

    Args:
        key: random key.
        labels: 0 or 1, [b, k].
        rate: probability that an image with a label loses one.
        side: n, the number of cells along one side.
        exchange: probability that a class takes its place, of those that the image does not have.
    """
    rate_key, class_key, noise_key, exchange_key, donor_key = jax.random.split(key, 5)
    classes = _one_of(labels, rate, rate_key, class_key)
    noise = jax.random.uniform(noise_key, (len(labels), side, side))
    if not exchange:
        return Draw(classes, noise)
    donated = _one_of(_donor(labels) * (labels == 0), exchange, exchange_key, donor_key)
    return Draw(classes, noise, jnp.where(classes < 0, -1, donated))


def remove(images, labels, focus, removal: Draw):
    """The images after the removal, and their labels: [b, s, s, c] and [b, k].

    Another class goes with the one that is removed if most of its focus is in the same region.

    Args:
        images: whole views, squares.
        labels: before the removal, [b, k]; −1 where a class is unknown, which it stays.
        focus: [b, n², k], whose softmax over the n × n cells is each cell's share in a class's evidence. Cells are numbered
            column by column, as in `causal.views`.
        removal: from `draw`.
    """
    cells = _cells(focus, removal.noise.shape[1])
    left = labels * (1 - jax.nn.one_hot(removal.classes, labels.shape[1], dtype=labels.dtype))
    region = _region(cells, removal.classes)
    fill = _moved(images, _elsewhere(cells, left, removal), removal.noise.shape[1])
    shown = jnp.zeros_like(labels)
    if removal.donated is not None:
        region, fill, shown = _exchanged(images, labels, cells, removal, region, fill)
    mask = jax.image.resize(region.astype(images.dtype), images.shape[:3], "linear")[..., None]
    left = jnp.where(left > 0, left * ~_most(cells, region), left)
    return images + mask * (fill - images), jnp.where((shown == 0) | (left > 0), left, shown)


@shaped("b h h, b h h -> b h h")
def overlap(region, badness):
    """The badness in the region moved by each (y, x), which wraps around: two [b, n, n] -> float32 [b, n, n]."""
    spectrum = jnp.conj(jnp.fft.rfft2(region.astype(jnp.float32))) * jnp.fft.rfft2(badness)
    return jnp.fft.irfft2(spectrum, region.shape[1:])


def _one_of(labels, rate, rate_key, class_key):
    """One of the labels of each image, at a rate; −1: none. [b, k] -> int32 [b]."""
    lots = jax.random.uniform(class_key, labels.shape) + (labels > 0)
    drawn = (labels > 0).any(axis=1) & jax.random.bernoulli(rate_key, rate, labels.shape[:1])
    return jnp.where(drawn, jnp.argmax(lots, axis=1), -1).astype(jnp.int32)


def _donor(array):
    """Of the image before each image of the batch."""
    return jnp.roll(array, 1, axis=0)


def _cells(focus, side):
    """Focus of each cell (y, x) relative to the class's pivot, in (0, 1]: [b, n², k] -> float32 [b, n, n, k]."""
    focus = focus.astype(jnp.float32).reshape(-1, side, side, focus.shape[2]).swapaxes(1, 2)
    return jnp.exp(focus - focus.max(axis=(1, 2), keepdims=True))


def _of_class(cells, classes):
    """The cells of one class of each image: [b, n, n, k] and int [b] -> [b, n, n]."""
    return jnp.take_along_axis(cells, jnp.maximum(classes, 0)[:, None, None, None], axis=3)[..., 0]


def _region(cells, classes):
    """The class's own cells and those around them, bool [b, n, n]; none for a negative class."""
    own = _of_class(cells, classes) >= OWN
    grown = jax.lax.reduce_window(own, False, jax.lax.bitwise_or, (1, 3, 3), (1, 1, 1), "SAME")
    return grown & (classes >= 0)[:, None, None]


def _elsewhere(cells, left, removal):
    """How far the fill of each image's region is from it, in cells (y, x): int [b, 2]."""
    region = _region(cells, removal.classes)
    bad = _ITSELF * _of_class(cells, removal.classes) + _OTHERS * (cells * left[:, None, None]).max(axis=3)
    area = jnp.maximum(region.sum(axis=(1, 2), keepdims=True), 1)
    return _place(-overlap(region, bad) / area - _CHANCE * removal.noise)


def _exchanged(images, labels, cells, removal, region, fill):
    """Region and fill where a class of another image takes the place of the one removed, and the labels that it brings.

    Other images have the region and the fill that are given, and no new label.
    """
    side = region.shape[1]
    donor, donated = _donor(cells), removal.donated
    shift = _place(_of_class(donor, donated)) - _place(_of_class(cells, removal.classes))
    # Cells of the region whose content is in the donor's image, not around its edge.
    source = jnp.arange(side)[None, :, None] + shift[:, None]
    y, x = jnp.moveaxis((source >= 0) & (source < side), 2, 0)
    inside = y[:, :, None] & x[:, None, :] & (donated >= 0)[:, None, None]
    region |= _rolled(_region(donor, donated), shift) & inside
    shown = _donor(labels) * _most(_rolled(donor, shift), region & inside)
    exchanged = (donated >= 0)[:, None, None, None]
    return region, jnp.where(exchanged, _moved(_donor(images), shift, side), fill), shown


def _place(cells):
    """Row and column of the largest: [b, n, n] -> int [b, 2]."""
    index = jnp.argmax(cells.reshape(len(cells), -1), axis=1)
    return jnp.stack([index // cells.shape[1], index % cells.shape[1]], axis=1)


def _most(cells, region):
    """Whether most of each class's focus is in the region: [b, n, n, k] and [b, n, n] -> bool [b, k]."""
    return (cells * region[..., None]).sum(axis=(1, 2)) > cells.sum(axis=(1, 2)) / 2


def _moved(images, cells_by, side):
    """Images moved by a number of cells, as `_rolled`."""
    return _rolled(images, cells_by * images.shape[1] // side)


def _rolled(arrays, by):
    """Arrays [b, n, n, …] in which what was at (y, x) = `by` is at the origin."""
    return jax.vmap(lambda array, by: jnp.roll(array, -by, axis=(0, 1)))(arrays, by)
