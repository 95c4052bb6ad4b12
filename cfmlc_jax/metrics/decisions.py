"""Which classes are said to be in an image, by other rules than one threshold: top k, and class priors."""

import numpy as np


def top_k(scores, k: int = 3) -> np.ndarray:
    """The k classes with the highest scores of every image: [n, classes] -> bool [n, classes].

    Of tied scores the first class is taken (PyTorch's topk, which the reference uses, does not say
    which). All classes where there are no more than k.

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
    """As many images of every class as its prior says: [n, k], [k] -> bool [n, k].

    Class k is predicted in its ⌊rates[k]·n⌋ highest scores, and in all that tie with the last of
    them; with the training set's positive rates this is the reference's threshold per class. Where
    the product is below 1 nothing is predicted (there the reference's index −1 predicts everything).

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
