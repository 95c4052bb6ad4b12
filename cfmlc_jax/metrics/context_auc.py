"""The mean of `cooccurrence.context_auc` over pairs of classes, with its bootstrap interval over images.

It measures, without a threshold, how often context raises the score of an absent target.
"""

from typing import NamedTuple

import numpy as np

from cfmlc_jax.metrics.bootstrap import Interval, Statistic, interval, mean_of_defined, ratio


def mean_context_auc(
    scores, labels, pairs, *, generator: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """Mean context AUC over pairs with its interval: two [n, k], [m, 2] -> `Interval` of floats.

    0.5 for predictions that ignore the context, 1 for predictions that follow the context alone, for any
    threshold and calibration. Pairs that lack the necessary images are excluded, separately in each
    resample; NaN if no pair is left.

    Args:
        scores: any increasing function of the probabilities.
        labels: 1 where the class is present, −1 where that is unknown: a pair is of the images that know both.
        pairs: targets and contexts, from `cooccurrence.strongest_pairs` of the training set.
        generator: random generator of the bootstrap.
        resamples: number of resamples.
        level: confidence level of the interval.

    Raises:
        ValueError: unequal shapes, a score that is NaN, pairs that are not [m, 2], or as
            `bootstrap.interval`.
    """
    per_pair = weighted_context_auc(scores, labels, pairs)
    return interval(
        lambda weights: mean_of_defined(per_pair(weights)),
        len(scores),
        generator=generator,
        resamples=resamples,
        level=level,
        bounds=(0.0, 1.0),
    )


def weighted_context_auc(scores, labels, pairs) -> Statistic:
    """Context AUC of each pair as a statistic: two [n, k], pairs [m, 2] -> (weights [r, n] -> [r, m]).

    An image of weight w counts as w images; with all weights 1 the values equal those of
    `cooccurrence.context_auc`.

    Raises:
        ValueError: unequal shapes, a score that is NaN, or pairs that are not [m, 2].
    """
    scores, labels, pairs = np.asarray(scores), np.asarray(labels), np.asarray(pairs, np.int64)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [n, k]")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are NaN")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs {pairs.shape} must be [m, 2], target and context")
    # Pairs of a target share its ranking. Where a context is partly unknown, the pair has its own.
    partial = (labels < 0).any(axis=0)
    groups: dict[tuple[int, int | None], list[int]] = {}
    for number, (target, context) in enumerate(pairs.tolist()):
        groups.setdefault((target, context if partial[context] else None), []).append(number)
    rankings = [
        (_rank(scores[:, target], _without(labels, target, context)), numbers)
        for (target, context), numbers in groups.items()
    ]
    present = labels > 0

    def statistic(weights):
        aucs = np.zeros((len(weights), len(pairs)))
        for ranking, numbers in rankings:
            aucs[:, numbers] = np.stack(_context_aucs(ranking, present, pairs[numbers, 1], weights), axis=1)
        return aucs

    return statistic


class _Ranking(NamedTuple):
    """The images without a target by rising score."""

    images: np.ndarray  # [a]
    starts: np.ndarray  # [g], index of each group of tied scores
    group: np.ndarray  # [a], group of each image


def _without(labels, target, context):
    """The images known to be without a target, and known with or without a context, unless that is None."""
    absent = labels[:, target] == 0
    return np.flatnonzero(absent if context is None else absent & (labels[:, context] >= 0))


def _rank(scores, absent) -> _Ranking:
    images = absent[np.argsort(scores[absent], kind="stable")]
    ranked = scores[images]
    begins = np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)]
    return _Ranking(images, np.flatnonzero(begins), np.cumsum(begins) - 1)


def _context_aucs(ranking: _Ranking, present, contexts, weights):
    """Context AUC [r] of one target for each context, a list.

    The rank of an image is the weight below it among all images without the target. Summed over the images
    with the context, ranks count each pair of these images once, which is half their number squared; that part
    is subtracted.
    """
    if not ranking.images.size:
        return [np.full(len(weights), np.nan) for _ in contexts]
    drawn = weights.take(ranking.images, axis=1)
    tied = np.add.reduceat(drawn, ranking.starts, axis=1)
    ranks = np.cumsum(tied, axis=1) - tied / 2
    total = drawn.sum(axis=1)
    aucs = []
    for context in contexts:
        places = np.flatnonzero(present[ranking.images, context])
        beside = drawn.take(places, axis=1)
        images = beside.sum(axis=1)
        wins = (beside * ranks.take(ranking.group[places], axis=1)).sum(axis=1) - images**2 / 2
        aucs.append(ratio(wins, images * (total - images)))
    return aucs
