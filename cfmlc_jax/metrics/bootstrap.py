"""Bootstrap intervals over images, and a mean average precision that is fast enough for them.

A resample of n images, drawn with replacement, is represented by weights: how often each image was
drawn. A statistic of weights sorts its scores only once, not once per resample.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.metrics.average_precision import AP_DEFINITIONS
from cfmlc_jax.shapes import shaped

# Number of weights per call of a statistic, 16 MB of float64; larger chunks exceed the caches and are no faster.
CHUNK = 2**21

# Bounds of a statistic in percent.
PERCENT = (0.0, 100.0)

# Image weights float64 [r, n] -> the statistic of each resample [r, …].
Statistic = Callable[[np.ndarray], np.ndarray]


class Interval(NamedTuple):
    """A statistic of the original images, and the ends of its interval: floats or arrays […]."""

    value: Any
    low: Any
    high: Any


def interval(
    statistic: Statistic,
    images: int,
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    bounds: tuple[Any, Any] = (-np.inf, np.inf),
) -> Interval:
    """A statistic with its bias-corrected bootstrap interval over images: three arrays […].

    The ends are the (1 − level)/2 and (1 + level)/2 quantiles of the statistic over resamples, or those of
    the normal distribution if they are wider (quantiles of few resamples are noisy), minus twice
    the bias, which is the mean over resamples minus the value (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapters 10 and 13). Subtracting it once centres the interval on the value, and once
    more on the statistic of infinitely many images, from which the value differs by about the same bias.
    The interval always includes the value. Its ends are NaN if the statistic is NaN in any resample: there are
    too few images for an interval.

    To compare two predictions on the same images, pass the difference of their statistics.

    Args:
        statistic: image weights float64 [r, n] -> [r, …], row by row.
        images: n, the number of images to draw from.
        generator: random generator; equal generators give equal intervals.
        resamples: number of resamples of n images.
        level: confidence level of the interval, in (0, 1).
        bounds: least and greatest possible value of the statistic, numbers or arrays […].

    Raises:
        ValueError: no images, no resamples, or a level outside (0, 1).
    """
    if images < 1 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {images} images; both must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is outside (0, 1); give 0.95, for example")
    value = statistic(np.ones((1, images)))[0]
    drawn = np.concatenate([statistic(w) for w in _weights(images, generator, resamples)])
    mean = drawn.mean(axis=0)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    reach = NormalDist().inv_cdf((1 + level) / 2) * drawn.std(axis=0)
    ends = np.stack([np.minimum(low, mean - reach), np.maximum(high, mean + reach)])
    low, high = np.clip(ends - 2 * (mean - value), *bounds)
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


def _weights(images: int, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """How often each image was drawn, float64 [r, n], in chunks that together have all resamples.

    Over all resamples every image is drawn equally often (the balanced bootstrap of Davison, Hinkley
    and Schechtman, Biometrika 1986), which estimates the bias as well as many more ordinary resamples.
    """
    drawn = np.tile(np.arange(images, dtype=np.int32), resamples)
    generator.shuffle(drawn)
    drawn = drawn.reshape(resamples, images)
    rows = max(1, CHUNK // images)
    for start in range(0, resamples, rows):
        chunk = drawn[start : start + rows]
        yield np.stack([np.bincount(row, minlength=images) for row in chunk]).astype(np.float64)


def weighted_mean_average_precision(scores, labels, definition: str) -> Statistic:
    """Mean average precision in percent as a statistic: two [n, k] -> (weights [r, n] -> [r]).

    With all weights 1 it equals `metrics.mean_average_precision`. A class without positives in a resample counts as 0
    with "sklearn"; with "voc" it is excluded from that resample.

    Average precision of few positives is biased upwards, and more so with repeated images. `interval` corrects this
    bias, so the value of a weak classifier lies in the upper part of its interval.

    Raises:
        ValueError: an unknown definition, unequal shapes, or a score that is NaN.
    """
    per_class = weighted_average_precision(scores, labels, definition)
    return lambda weights: 100 * mean_of_defined(per_class(weights))


def weighted_average_precision(scores, labels, definition: str) -> Statistic:
    """Average precision of each class as a statistic: two [n, k] -> (weights [r, n] -> [r, k]).

    An image of weight w counts as w images with the same scores. With all weights 1 the values equal those
    of `metrics.average_precision`, also for ties and classes without positives.

    Raises:
        ValueError: an unknown definition, unequal shapes, or a score that is NaN.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if definition not in AP_DEFINITIONS:
        raise ValueError(f"AP definition {definition!r} is not one of {', '.join(AP_DEFINITIONS)}")
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [n, k]")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are NaN")
    rankings = [_rank(scores[:, k], labels[:, k]) for k in range(scores.shape[1])]
    return lambda weights: np.stack([_one_class(r, weights, definition) for r in rankings], axis=1)


def values_and_gains(statistics: Sequence[Statistic], base: int) -> tuple[Statistic, tuple[Any, Any]]:
    """Several statistics in percent followed by their gains over one of them, as one statistic; and its bounds.

    From m statistics, weights [r, n] -> [r, …], it makes one, weights [r, n] -> [r, 2·m, …]. `base` is the index of
    the one that gains are relative to. A gain is a difference on the same images, so its interval is narrower
    than the two separate intervals suggest.
    """

    def statistic(weights):
        values = np.stack([part(weights) for part in statistics], axis=1)
        return np.concatenate([values, values - values[:, base, None]], axis=1)

    least = np.repeat([PERCENT[0], -PERCENT[1]], len(statistics))
    return statistic, (least, PERCENT[1])


@shaped("r c -> r")
def mean_of_defined(values):
    """Row means that ignore NaN: [r, c] -> [r]; NaN for a row of NaN only."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


@shaped("..., ... -> ...")
def ratio(part, whole):
    """Quotient of two arrays, NaN where `whole` is 0: two [...] -> float64 [...]."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


class _Ranking(NamedTuple):
    """The images of which one class is known, by falling score, cut at the groups of ties that contain a positive.

    Precision is needed only at the end of such a group. Between two of them recall does not grow and
    precision only falls, so the thresholds in between change neither the sum nor the envelope.
    """

    images: np.ndarray  # [m], images down to the end of the last group
    starts: np.ndarray  # [g], index in `images` after the end of the previous group
    positives: np.ndarray  # [q], the positive images
    first: np.ndarray  # [g], index in `positives` of each group's first


def _rank(scores, labels) -> _Ranking:
    order = np.argsort(-scores, kind="stable")
    order = order[labels[order] >= 0]
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    places = np.flatnonzero(labels[order] > 0)
    with_positive, first = np.unique(np.searchsorted(ends, places), return_index=True)
    stops = ends[with_positive] + 1
    last = stops[-1] if stops.size else 0
    return _Ranking(order[:last], np.append(0, stops)[:-1], order[places], first)


def _one_class(ranking: _Ranking, weights, definition: str):
    """Average precision of one class in each resample: weights [r, n] -> [r]."""
    without_positives = 0.0 if definition == "sklearn" else np.nan
    if not ranking.positives.size:
        return np.full(len(weights), without_positives)
    gained = np.add.reduceat(weights.take(ranking.positives, axis=1), ranking.first, axis=1)
    added = np.add.reduceat(weights.take(ranking.images, axis=1), ranking.starts, axis=1)
    true_positives, predicted = np.cumsum(gained, axis=1), np.cumsum(added, axis=1)
    # Before the first drawn image precision is 0/0, but recall does not grow there: any value will do.
    precision = np.divide(true_positives, predicted, out=np.zeros_like(true_positives), where=predicted > 0)
    if definition == "voc":
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = true_positives[:, -1]
    area = (gained * precision).sum(axis=1)
    return np.divide(area, total, out=np.full(len(weights), without_positives), where=total > 0)
