"""Bootstrap intervals over images, and mean average precision fast enough for them.

A resample of n images, drawn with replacement, is written as weights: how often each image was
drawn. A statistic that takes weights sorts its scores once, not once for every resample.
"""

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.metrics.average_precision import AP_DEFINITIONS
from cfmlc_jax.shapes import shaped

# Weights of one call of a statistic, 16 MB of float64: beyond the caches nothing gets faster.
CHUNK = 2**21

# Bounds of a statistic in percent.
PERCENT = (0.0, 100.0)

# Image weights float64 [r, n] -> the statistic of each resample [r, …].
Statistic = Callable[[np.ndarray], np.ndarray]


class Interval(NamedTuple):
    """A statistic of the images as they are, and the ends of its interval: floats or arrays […]."""

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
    """A statistic with its bootstrap interval over images, less its bias: three arrays […].

    The ends are the (1 − level)/2 and (1 + level)/2 quantiles of the statistic over resamples, or those of
    the normal distribution where they are wider (quantiles of few resamples are noisy), moved by twice
    the bias: the mean over resamples less the value (Efron and Tibshirani, "An Introduction to the
    Bootstrap", 1993, chapters 10 and 13). Once leads from the resamples to the value, and once from
    there to what the interval is to cover, for the value is off that of endless images by about as
    much. The interval always holds the value. Its ends are NaN where the statistic is NaN in any
    resample: there are too few images for an interval.

    To compare two predictions on the same images, pass the difference of their statistics.

    Args:
        statistic: image weights float64 [r, n] -> [r, …], row by row.
        images: n, what is drawn from.
        generator: of the draws; the same generator, the same interval.
        resamples: how many samples of n images.
        level: probability that the interval is to have, in (0, 1).
        bounds: what the statistic cannot leave, numbers or arrays […].

    Raises:
        ValueError: no images, no resamples, or a level outside (0, 1).
    """
    if images < 1 or resamples < 1:
        raise ValueError(f"{resamples} resamples of {images} images; both must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is outside (0, 1); 0.95 is usual")
    value = statistic(np.ones((1, images)))[0]
    drawn = np.concatenate([statistic(w) for w in _weights(images, generator, resamples)])
    mean = drawn.mean(axis=0)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    reach = NormalDist().inv_cdf((1 + level) / 2) * drawn.std(axis=0)
    ends = np.stack([np.minimum(low, mean - reach), np.maximum(high, mean + reach)])
    low, high = np.clip(ends - 2 * (mean - value), *bounds)
    return Interval(value, np.minimum(low, value), np.maximum(high, value))


def _weights(images: int, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """How often each image was drawn, float64 [r, n], in chunks that add up to the resamples.

    Over all resamples every image is drawn equally often (the balanced bootstrap of Davison, Hinkley
    and Schechtman, Biometrika 1986): the bias is then known as well as from far more resamples.
    """
    drawn = np.tile(np.arange(images, dtype=np.int32), resamples)
    generator.shuffle(drawn)
    drawn = drawn.reshape(resamples, images)
    rows = max(1, CHUNK // images)
    for start in range(0, resamples, rows):
        chunk = drawn[start : start + rows]
        yield np.stack([np.bincount(row, minlength=images) for row in chunk]).astype(np.float64)


def mean_average_precision_interval(
    scores,
    labels,
    definition: str,
    *,
    generator: np.random.Generator,
    resamples: int = 200,
    level: float = 0.95,
) -> Interval:
    """Mean average precision in percent with its bootstrap interval: two [n, k] -> floats.

    Each resample is scored as `metrics.mean_average_precision` would score its images. A class
    whose positives were all left out therefore counts 0 under "sklearn"; under "voc" it is left out of
    that resample.

    Of few positives average precision is too high, and of repeated images higher still: that bias
    `interval` takes away, so that a weak classifier's value lies in the upper part of its interval.

    Args:
        scores: any increasing function of the probabilities.
        labels: 1 where the class is present.
        definition: "sklearn" or "voc", see `metrics.average_precision`.
        generator: of the draws.
        resamples: how many samples of n images.
        level: probability that the interval is to have.

    Raises:
        ValueError: what `weighted_mean_average_precision` or `interval` refuses.
    """
    statistic = weighted_mean_average_precision(scores, labels, definition)
    return interval(
        statistic, len(scores), generator=generator, resamples=resamples, level=level, bounds=PERCENT
    )


def weighted_mean_average_precision(scores, labels, definition: str) -> Statistic:
    """The statistic weights [r, n] -> mean average precision in percent [r], of two [n, k].

    With all weights 1 it is `metrics.mean_average_precision`.

    Raises:
        ValueError: another definition, unequal shapes, or a score that is not a number.
    """
    per_class = weighted_average_precision(scores, labels, definition)
    return lambda weights: 100 * mean_of_defined(per_class(weights))


def weighted_average_precision(scores, labels, definition: str) -> Statistic:
    """The statistic weights [r, n] -> average precision of each class [r, k], of two [n, k].

    An image of weight w counts as w images with its scores; with all weights 1 the values are those
    of `metrics.average_precision`, ties and classes without positives included.

    Raises:
        ValueError: another definition, unequal shapes, or a score that is not a number.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if definition not in AP_DEFINITIONS:
        raise ValueError(f"AP definition {definition!r} is not one of {', '.join(AP_DEFINITIONS)}")
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [n, k]")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are NaN")
    rankings = [_rank(scores[:, k], labels[:, k] > 0) for k in range(scores.shape[1])]
    return lambda weights: np.stack([_one_class(r, weights, definition) for r in rankings], axis=1)


def values_and_gains(statistics: Sequence[Statistic], base: int) -> tuple[Statistic, tuple[Any, Any]]:
    """Several statistics in percent and, below them, what each gains over one of them; and their bounds.

    Weights [r, n] -> [r, 2·m, …] of m statistics -> [r, …]. A gain is the difference on the same
    images, so that its interval is narrower than the two intervals suggest.
    """

    def statistic(weights):
        values = np.stack([of(weights) for of in statistics], axis=1)
        return np.concatenate([values, values - values[:, base, None]], axis=1)

    least = np.repeat([PERCENT[0], -PERCENT[1]], len(statistics))
    return statistic, (least, PERCENT[1])


@shaped("r c -> r")
def mean_of_defined(values):
    """Row means that leave NaN out: [r, c] -> [r], NaN where a row has nothing else."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1))


@shaped("..., ... -> ...")
def ratio(part, whole):
    """Quotient, NaN where `whole` is 0: two arrays of one shape -> float64."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


class _Ranking(NamedTuple):
    """One class's images by falling score, as far as they matter: groups of ties with a positive.

    Precision is read off at the end of such a group. Between two of them nothing is gained, and
    precision only falls, so neither sum nor envelope would see the thresholds left out.
    """

    images: np.ndarray  # [m], down to the last group
    starts: np.ndarray  # [g], where in `images` what is added to reach each group's end begins
    positives: np.ndarray  # [q], the positive images
    first: np.ndarray  # [g], where in `positives` each group begins


def _rank(scores, positive) -> _Ranking:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    places = np.flatnonzero(positive[order])
    groups, first = np.unique(np.searchsorted(ends, places), return_index=True)
    past = ends[groups] + 1
    reached = past[-1] if past.size else 0
    return _Ranking(order[:reached], np.append(0, past)[:-1], order[places], first)


def _one_class(ranking: _Ranking, weights, definition: str):
    """Average precision of one class in each resample: weights [r, n] -> [r]."""
    nothing = 0.0 if definition == "sklearn" else np.nan
    if not ranking.positives.size:
        return np.full(len(weights), nothing)
    gained = np.add.reduceat(weights.take(ranking.positives, axis=1), ranking.first, axis=1)
    added = np.add.reduceat(weights.take(ranking.images, axis=1), ranking.starts, axis=1)
    true_positives, predicted = np.cumsum(gained, axis=1), np.cumsum(added, axis=1)
    # Before the first image drawn nothing is predicted, and nothing gained: any number will do.
    precision = np.divide(true_positives, predicted, out=np.zeros_like(true_positives), where=predicted > 0)
    if definition == "voc":
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = true_positives[:, -1]
    area = (gained * precision).sum(axis=1)
    return np.divide(area, total, out=np.full(len(weights), nothing), where=total > 0)
