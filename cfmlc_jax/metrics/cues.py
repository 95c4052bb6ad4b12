"""Which cue a classifier follows: shares of images with their bootstrap intervals, and decisions about categories.

An image whose cues (shape, texture, background) have different labels shows which of them a prediction follows.
"""

import numpy as np

from cfmlc_jax.metrics.bootstrap import PERCENT, Interval, interval, ratio
from cfmlc_jax.metrics.imagenet_groups import CATEGORIES, IMAGENET_CLASSES, IN9_CLASSES, to_in9


def shares(
    properties,
    among=None,
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """The percentage of images with each property, with its bootstrap interval: bool [n, c] -> three [c].

    Args:
        properties: bool [n, c].
        among: bool [n], the images that count; None: all. If there are none the values are NaN; if a resample has
            none, the ends are.
        generator: random generator of the bootstrap.
        resamples: number of resamples of n images.
        level: confidence level.
    """
    properties = np.asarray(properties, bool)
    count = np.ones(len(properties)) if among is None else np.asarray(among, np.float64)
    having = properties * count[:, None]

    def statistic(weights):
        return 100 * ratio(
            weights @ having, np.broadcast_to((weights @ count)[:, None], (len(weights), having.shape[1]))
        )

    return interval(
        statistic, len(count), generator=generator, resamples=resamples, level=level, bounds=PERCENT
    )


def change(
    after, before, *, generator: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """The difference of two percentages of the same images, with its bootstrap interval: two bool [n] -> three floats."""
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    bounds = (-PERCENT[1], PERCENT[1])
    return interval(
        lambda weights: 100 * (weights @ difference) / len(difference),
        len(difference),
        generator=generator,
        resamples=resamples,
        level=level,
        bounds=bounds,
    )


def cue_shares(predicted, labels, *, generator: np.random.Generator) -> tuple[Interval, Interval]:
    """Percentages of predictions that have the label of each of c cues, or of none: two intervals of [c + 1].

    The second is of the errors alone: the images whose prediction is not the label of the first cue. There the
    first cue has 0.

    Args:
        predicted: int [n].
        labels: int [n, c], of each cue; the first is the one to recognise.
        generator: random generator of the bootstrap.
    """
    agree = np.asarray(predicted)[:, None] == np.asarray(labels)
    properties = np.column_stack([agree, ~agree.any(axis=1)])
    return (
        shares(properties, generator=generator),
        shares(properties, ~agree[:, 0], generator=generator),
    )


def category_decisions(logits) -> np.ndarray:
    """The category of each image, as a position in `CATEGORIES`: logits [n, 1000] -> int [n].

    That whose classes have the highest mean probability; of equal ones the first (Geirhos et al., 2018).
    """
    logits = np.asarray(logits, np.float64)
    _require_imagenet(logits)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    means = [probabilities[:, indices].mean(axis=1) for indices in CATEGORIES.values()]
    return np.stack(means, axis=1).argmax(axis=1)


def shape_bias(decided, shapes, textures, *, generator: np.random.Generator) -> Interval:
    """Shape decisions among all shape and texture decisions, percent, with its bootstrap interval: three floats.

    NaN without any such decision (the reference has 0 then).

    Args:
        decided: int [n].
        shapes: int [n], the category of the image's shape.
        textures: int [n], that of its texture.
        generator: random generator of the bootstrap.
    """
    by_shape, by_texture = (np.asarray(decided) == np.asarray(labels) for labels in (shapes, textures))
    return Interval(
        *(ends[0] for ends in shares(by_shape[:, None], by_shape | by_texture, generator=generator))
    )


def in9_decisions(logits) -> np.ndarray:
    """The class of ImageNet-9 of each image, −1 for any other: logits [n, 1000] or [n, 9] -> int [n].

    The class of the highest of all 1,000 logits decides, as in the challenge, so that it may be in none of the nine.
    """
    logits = np.asarray(logits)
    decided = logits.argmax(axis=1)
    if logits.shape[1] == len(IN9_CLASSES):
        return decided
    _require_imagenet(logits)
    return to_in9()[decided]


def _require_imagenet(logits):
    if logits.ndim != 2 or logits.shape[1] != IMAGENET_CLASSES:
        raise ValueError(f"logits {logits.shape} are not [n, {IMAGENET_CLASSES}]")
