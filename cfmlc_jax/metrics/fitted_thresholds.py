"""Thresholds of classes, chosen on a split with labels. A class is predicted where its score is above its threshold.

A threshold lies halfway between the lowest score that is predicted and the highest that is not, as a float32: so
it decides the same in a file, in Python and in an exported program.
"""

from typing import NamedTuple

import numpy as np

from cfmlc_jax.shapes import shaped

# How thresholds are chosen; "fixed" is 0.5 for every class.
RULES = ("fixed", "f1", "precision", "rate")


@shaped("n k, n k -> k")
def best_f1(scores, labels) -> np.ndarray:
    """The threshold of each class with the highest F1: two [n, k] -> float32 [k].

    Of equal F1 the highest threshold is taken. NaN for a class without positives, or whose scores are all 0.

    Args:
        scores: probabilities.
        labels: 1 where the class is present, −1 where that is unknown: a class is decided on its known images.
    """
    return _by_class(scores, labels, _best_f1)


@shaped("n k, n k -> k")
def at_precision(scores, labels, least: float) -> np.ndarray:
    """The lowest threshold of each class at which its precision is at least `least`: two [n, k] -> float32 [k].

    1, which no probability exceeds, for a class that never reaches the precision. NaN for a class without
    positives, or whose scores are all 0.

    Args:
        scores: probabilities.
        labels: 1 where the class is present, −1 where that is unknown: a class is decided on its known images.
        least: precision, in (0, 1].
    """
    return _by_class(scores, labels, lambda cuts, total: _at_precision(cuts, least))


@shaped("n k, k -> k")
def at_rates(scores, rates) -> np.ndarray:
    """The threshold at which each class is predicted for its rate of the images: [n, k], [k] -> float32 [k].

    The share of predicted images is the nearest to the rate that ties allow. It may be none: the threshold is then
    the highest score. `decisions.at_rate` is the reference's rule, which rounds down.

    Args:
        scores: probabilities.
        rates: shares of images, in [0, 1].
    """
    scores, rates = np.asarray(scores, np.float32), np.asarray(rates, np.float64)
    return np.array([_at_rate(scores[:, k], rates[k]) for k in range(len(rates))], np.float32)


class _Cuts(NamedTuple):
    """The thresholds [m] that differ in what they predict, highest first; the predicted images and the hits [m]."""

    thresholds: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray


def _cuts(scores, positive) -> _Cuts:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    ends = ends[ranked[ends] > 0]  # no threshold in [0, 1] is below 0
    lowest = ranked[ends]
    below = np.append(ranked, np.float32(0))[ends + 1]
    middle = ((lowest.astype(np.float64) + below) / 2).astype(np.float32)
    # Between neighbouring float32 numbers there is none.
    thresholds = np.where(middle < lowest, middle, below)
    return _Cuts(thresholds, ends + 1, np.cumsum(positive[order])[ends])


def _by_class(scores, labels, choose):
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels)
    thresholds = np.full(scores.shape[1], np.nan, np.float32)
    for k, total in enumerate((labels > 0).sum(axis=0)):
        known = labels[:, k] >= 0
        cuts = _cuts(scores[known, k], labels[known, k] > 0)
        if total and len(cuts.thresholds):
            thresholds[k] = choose(cuts, total)
    return thresholds


def _best_f1(cuts: _Cuts, total):
    return cuts.thresholds[np.argmax(2 * cuts.hits / (cuts.predicted + total))]


def _at_precision(cuts: _Cuts, least):
    reached = np.flatnonzero(cuts.hits / cuts.predicted >= least)
    return cuts.thresholds[reached[-1]] if len(reached) else 1.0


def _at_rate(scores, rate):
    cuts = _cuts(scores, np.zeros(len(scores), bool))
    predicted = np.append(0, cuts.predicted)
    return np.append(scores.max(), cuts.thresholds)[np.abs(predicted - rate * len(scores)).argmin()]
