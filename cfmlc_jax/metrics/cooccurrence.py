"""How labels co-occur, and how far predictions lean on context.

Matrices are [k, k] with the target class j in rows and the context class i in columns. The
question of each entry: is j predicted more readily where i is present than where i is absent, all
images having j (true-positive rate) or none of them having j (false-positive rate)? The rates given
the context are those of MLC-PAT's figure 1 (arXiv:2404.06287).

They are held against the images *without* the context, as Singh et al. do ("Don't Judge an Object
by Its Context", CVPR 2020: images where a class occurs with its context against images where it
occurs without), not against all images: all images contain those with the context, so that the
contrast would shrink by their share, which differs from pair to pair and from split to split.

A high false-positive rate beside i shows that j is predicted there, not why: classes that look
alike (spoon and fork) raise it as much as learnt context does.
"""

from dataclasses import dataclass

import numpy as np

from cfmlc_jax.metrics.bootstrap import Interval, interval, mean_of_defined, ratio


def counts(labels) -> np.ndarray:
    """Images that have both classes: [n, k] -> int64 [k, k], symmetric, each class's own on the diagonal."""
    present = _labels(labels)
    return np.rint(present.T @ present).astype(np.int64)


def conditional_probability(labels) -> np.ndarray:
    """P(target | context) by counting: [n, k] -> float64 [k, k], NaN for a context without images."""
    both = counts(labels)
    return ratio(both, np.broadcast_to(both.diagonal(), both.shape))


def lift(labels) -> np.ndarray:
    """P(target | context) / P(target): [n, k] -> float64 [k, k], 1 for independent classes.

    NaN where either class has no images.
    """
    both = counts(labels)
    return ratio(both * float(len(labels)), np.outer(both.diagonal(), both.diagonal()))


def added_value(labels) -> np.ndarray:
    """P(target | context) − P(target): [n, k] -> float64 [k, k] in [−1, 1], 0 for independent classes.

    The strength of a pair here. Lift would put pairs of rare classes first, whatever the images
    they decide; this is how much the context moves the prior (association rules' "added value",
    Tan et al., "Selecting the right interestingness measure", KDD 2002).
    """
    rate = _labels(labels).mean(axis=0)
    return conditional_probability(labels) - rate[:, None]


def strongest_pairs(labels, pairs: int, *, min_images: int = 10) -> np.ndarray:
    """The pairs whose context raises the target's probability most: [n, k] -> int64 [m, 2], target and context.

    In falling order of `added_value`, at equal strength by class index. Only pairs of positive
    strength count, so that m may be less than `pairs`, and 0.

    Args:
        labels: of the *training* set: what a classifier could learn.
        pairs: how many, at most; (j, i) and (i, j) are two.
        min_images: least number of images with both classes.

    Raises:
        ValueError: labels that are not [n, k], or less than one pair.
    """
    if pairs < 1:
        raise ValueError(f"{pairs} pairs; ask for at least 1")
    both, strength = counts(labels), added_value(labels)
    eligible = (both >= min_images) & (strength > 0) & ~np.eye(len(both), dtype=bool)
    order = np.argsort(np.where(eligible, -strength, np.inf), axis=None, kind="stable")
    chosen = order[: min(pairs, eligible.sum())]
    return np.stack(np.unravel_index(chosen, both.shape), axis=1).astype(np.int64)


@dataclass(frozen=True)
class Rates:
    """How often the target is predicted, by what else is in the image; fractions, NaN without such images.

    with_context: [k, k], over images with the context.
    without_context: [k, k], over images without it.
    overall: [k], over both: the unconditional rate.
    """

    with_context: np.ndarray
    without_context: np.ndarray
    overall: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """Rate with the context less rate without it: [k, k], NaN on the diagonal."""
        return self.with_context - self.without_context

    @property
    def undefined(self) -> int:
        """Number of pairs of two classes whose excess is NaN."""
        return int(np.isnan(self.excess).sum()) - len(self.overall)


def true_positive_rates(probabilities, labels, threshold) -> Rates:
    """Rates of predicting the target among images that have it: two [n, k] -> `Rates`.

    Args:
        probabilities: or logits, with a threshold on the same scale.
        labels: 1 where the class is present.
        threshold: one number, or one per class [k]; predicted is what is above it.

    Raises:
        ValueError: unequal shapes, or a probability that is not a number.
    """
    predicted, present = _predictions(probabilities, labels, threshold)
    return _rates(predicted, present, present)


def false_positive_rates(probabilities, labels, threshold) -> Rates:
    """Rates of predicting the target among images that lack it: two [n, k] -> `Rates`.

    Arguments and errors as in `true_positive_rates`.
    """
    predicted, present = _predictions(probabilities, labels, threshold)
    return _rates(predicted, 1 - present, present)


def context_auc(scores, labels) -> np.ndarray:
    """Probability that context raises an absent target's score: two [n, k] -> float64 [k, k] in [0, 1].

    Of two images without the target, one with the context and one without it, how often the first
    has the higher score (ties count half): 0.5 where context is ignored, whatever the threshold and
    the calibration. The Mann-Whitney statistic over the product of both numbers of images. NaN on
    the diagonal and where there are no such images.

    Args:
        scores: any increasing function of the probabilities.
        labels: 1 where the class is present.

    Raises:
        ValueError: unequal shapes, or a score that is not a number.
    """
    scores, present = _checked(scores, labels)
    absent = 1 - present
    ranks = np.zeros(scores.shape)
    for j in range(scores.shape[1]):
        rows = absent[:, j] > 0
        ranks[rows, j] = _midranks(scores[rows, j])
    n_with = absent.T @ present
    n_without = absent.sum(axis=0)[:, None] - n_with
    return ratio(ranks.T @ present - n_with * (n_with + 1) / 2, n_with * n_without)


@dataclass(frozen=True)
class ExcessFalsePositives:
    """Mean excess of false positives beside the context, over pairs of classes.

    excess: mean of `false_positive_rates(…).excess` over the pairs, a fraction, and its interval.
    pairs: how many the mean is over.
    undefined: how many were left out: no image has the context and lacks the target, or none lacks both.
    """

    excess: Interval
    pairs: int
    undefined: int


def mean_excess_false_positive_rate(
    probabilities,
    labels,
    threshold,
    pairs,
    *,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> ExcessFalsePositives:
    """One number for leaning on context, with its bootstrap interval over images: two [n, k], [m, 2].

    0 in expectation for predictions that do not depend on the context once the target is known to be
    absent; 1 for predictions that are the context. Without any defined pair it is NaN. A pair that
    a resample leaves without images is left out of that resample's mean; the interval is NaN if that
    leaves a resample without pairs.

    Args:
        probabilities: or logits, with a threshold on the same scale.
        labels: 1 where the class is present.
        threshold: one number, or one per class [k].
        pairs: targets and contexts, from `strongest_pairs` of the training set.
        generator: of the bootstrap's draws.
        resamples: how many.
        level: probability that the interval is to have.

    Raises:
        ValueError: unequal shapes, a probability that is not a number, pairs that are not two
            different classes, or what `bootstrap.interval` refuses.
    """
    predicted, present = _predictions(probabilities, labels, threshold)
    target, context = _pairs(pairs, present.shape[1])
    absent = 1 - present[:, target]
    beside, alone = absent * present[:, context], absent * (1 - present[:, context])
    wrong = predicted[:, target]

    def excess(weights):
        rate_beside = ratio(weights @ (beside * wrong), weights @ beside)
        return rate_beside - ratio(weights @ (alone * wrong), weights @ alone)

    undefined = int(np.isnan(excess(np.ones((1, len(present))))).sum())
    found = interval(
        lambda weights: mean_of_defined(excess(weights)),
        len(present),
        generator=generator,
        resamples=resamples,
        level=level,
        bounds=(-1.0, 1.0),
    )
    return ExcessFalsePositives(found, len(target) - undefined, undefined)


def _rates(predicted, counted, present) -> Rates:
    """Shares of predictions among the counted images [n, k], split by each context [n, k]."""
    images, hits = counted.sum(axis=0), (predicted * counted).sum(axis=0)
    images_with, hits_with = counted.T @ present, (predicted * counted).T @ present
    return Rates(
        with_context=ratio(hits_with, images_with),
        without_context=ratio(hits[:, None] - hits_with, images[:, None] - images_with),
        overall=ratio(hits, images),
    )


def _midranks(values):
    """Ranks from 1, the mean rank for ties: [n] -> float64 [n]."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(ties) - (ties - 1) / 2)[place]


def _predictions(probabilities, labels, threshold):
    """What is predicted and what is present, as 0.0 or 1.0, so that counts are matrix products: [n, k] each."""
    probabilities, present = _checked(probabilities, labels)
    # In the scores' own precision, as `metrics.thresholded` compares.
    above = probabilities > np.asarray(threshold, dtype=probabilities.dtype)
    return above.astype(np.float64), present


def _checked(scores, labels):
    scores, present = np.asarray(scores), _labels(labels)
    if scores.shape != present.shape:
        raise ValueError(f"scores {scores.shape} and labels {present.shape} must both be [n, k]")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are NaN")
    return scores, present


def _labels(labels):
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels):
        raise ValueError(f"labels {labels.shape} must be [n, k] of at least one image")
    return (labels > 0).astype(np.float64)


def _pairs(pairs, classes):
    pairs = np.asarray(pairs, np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs {pairs.shape} must be [m, 2], target and context")
    wrong = (pairs < 0).any(axis=1) | (pairs >= classes).any(axis=1) | (pairs[:, 0] == pairs[:, 1])
    if wrong.any():
        raise ValueError(f"pair {pairs[wrong][0].tolist()} is not two different classes below {classes}")
    return pairs[:, 0], pairs[:, 1]
