"""Rules that decide which classes are present, other than one threshold: top k, and class priors."""

import numpy as np


def top_k(scores, k: int = 3) -> np.ndarray:
    """The k classes with the highest scores of every image: [n, classes] -> bool [n, classes].

    Among tied scores the first class is chosen (PyTorch's topk, used by the reference, does not define
    which). All classes are chosen if there are no more than k.

    Raises:
        ValueError: scores that are not [n, classes], or k below 1.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or k < 1:
        raise ValueError(f"top {k} of scores {scores.shape}: they must be [n, classes], and k at least 1")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def at_rate(scores, rates) -> np.ndarray:
    """Predictions of every class at the rate of its prior: [n, k], [k] -> bool [n, k].

    Class k is predicted for the ⌊rates[k]·n⌋ images with its highest scores, and for all that tie with the
    last of them. With the training set's positive rates this is the reference's threshold per class. If
    the product is below 1 nothing is predicted (the reference's index −1 then predicts everything).

    Args:
        scores: any increasing function of the probabilities.
        rates: share of images, in [0, 1], that have the class.

    Raises:
        ValueError: unequal numbers of classes, or a rate outside [0, 1].
    """
    scores, rates = np.asarray(scores), np.asarray(rates, np.float64)
    if scores.ndim != 2 or rates.shape != scores.shape[1:]:
        raise ValueError(f"scores {scores.shape} and rates {rates.shape} must be [n, k] and [k]")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"rates from {rates.min():g} to {rates.max():g} must be in [0, 1]")
    counts = (rates * len(scores)).astype(int)
    descending = -np.sort(-scores, axis=0)
    last = np.take_along_axis(descending, np.maximum(counts - 1, 0)[None], axis=0)
    return (scores >= last) & (counts > 0)
