"""Co-occurrence of labels, and how much predictions depend on context.

Matrices are [k, k] with the target class j in rows and the context class i in columns. Each entry answers:
is j predicted more often if i is present than if i is absent? The images either all have j (true-positive
rate) or all lack j (false-positive rate). The rates with context are those of MLC-PAT's figure 1
(arXiv:2404.06287).

They are compared with the rates on images *without* the context, as in Singh et al. ("Don't Judge an Object
by Its Context", CVPR 2020), and not with those on all images. All images include those with the context, so the
difference would shrink by their share, which varies between pairs and splits.

A high false-positive rate with context i shows that j is predicted there, but not why: similar
classes (spoon and fork) raise it as much as learnt context does.
"""

from dataclasses import dataclass

import numpy as np

from cfmlc_jax.metrics.bootstrap import Interval, Statistic, interval, mean_of_defined, ratio


def counts(labels) -> np.ndarray:
    """Number of images with both classes: [n, k] -> int64 [k, k], symmetric; the diagonal counts single classes."""
    present, _ = _labels(labels)
    return np.rint(present.T @ present).astype(np.int64)


def known_counts(labels) -> np.ndarray:
    """Number of images with the context of which the target is known: [n, k] -> int64 [k, k].

    On the diagonal: of all images, those of which the class is known.
    """
    present, absent = _labels(labels)
    known = present + absent
    images = known.T @ present
    np.fill_diagonal(images, known.sum(axis=0))
    return np.rint(images).astype(np.int64)


def conditional_probability(labels) -> np.ndarray:
    """P(target | context) from counts: [n, k] -> float64 [k, k], NaN for a context without images.

    The images are those with the context of which the target is known.
    """
    present, absent = _labels(labels)
    return ratio(counts(labels), (present + absent).T @ present)


def added_value(labels) -> np.ndarray:
    """P(target | context) − P(target): [n, k] -> float64 [k, k] in [−1, 1], 0 for independent classes.

    This is the strength of a pair: how much the context changes the prior. Lift would rank pairs of rare
    classes first, even if they affect few images. (The "added value" of association rules, Tan et al.,
    "Selecting the right interestingness measure", KDD 2002.)
    """
    present, absent = _labels(labels)
    rate = ratio(present.sum(axis=0), (present + absent).sum(axis=0))
    return conditional_probability(labels) - rate[:, None]


def strongest_pairs(labels, pairs: int, *, min_images: int = 10) -> np.ndarray:
    """The pairs whose context raises the target's probability most: [n, k] -> int64 [m, 2], target and context.

    Pairs are sorted by falling `added_value`, ties by class index. Only pairs of positive
    strength count, so m may be less than `pairs`, even 0.

    Args:
        labels: labels of the *training* set, from which a classifier could learn the pairs.
        pairs: greatest number of pairs; (j, i) and (i, j) are two pairs.
        min_images: least number of images with both classes.

    Raises:
        ValueError: labels that are not [n, k], or `pairs` below 1.
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
    """Rates at which the target is predicted, with and without context: fractions, NaN without such images.

    with_context: [k, k], over images with the context.
    without_context: [k, k], over images without it.
    overall: [k], over both.
    """

    with_context: np.ndarray
    without_context: np.ndarray
    overall: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """Rate with the context minus rate without it: [k, k], NaN on the diagonal."""
        return self.with_context - self.without_context

    @property
    def undefined(self) -> int:
        """Number of pairs of two classes whose excess is NaN."""
        return int(np.isnan(self.excess).sum()) - len(self.overall)


def true_positive_rates(probabilities, labels, threshold) -> Rates:
    """Rates of predicting the target among images that have it: two [n, k] -> `Rates`.

    Args:
        probabilities: probabilities, or logits with a threshold on the same scale.
        labels: 1 where the class is present, −1 where that is unknown: a pair is of the images that know both.
        threshold: one number, or one per class [k]; scores above it are predictions.

    Raises:
        ValueError: unequal shapes, or a probability that is NaN.
    """
    predicted, present, absent = _predictions(probabilities, labels, threshold)
    return _rates(predicted, present, present, absent)


def false_positive_rates(probabilities, labels, threshold) -> Rates:
    """Rates of predicting the target among images that lack it: two [n, k] -> `Rates`.

    Arguments and errors as in `true_positive_rates`.
    """
    predicted, present, absent = _predictions(probabilities, labels, threshold)
    return _rates(predicted, absent, present, absent)


def context_auc(scores, labels) -> np.ndarray:
    """Probability that context raises an absent target's score: two [n, k] -> float64 [k, k] in [0, 1].

    It compares two images without the target, one with the context and one without it: how often has the first
    the higher score (ties count half)? The value is 0.5 if context is ignored, for any threshold and
    calibration. It is the Mann-Whitney statistic divided by the product of both numbers of images. NaN on
    the diagonal, and without such images.

    Args:
        scores: any increasing function of the probabilities.
        labels: 1 where the class is present; all must be known.

    Raises:
        ValueError: unequal shapes, a score that is NaN, or a label that is unknown.
    """
    scores, present, absent = _checked(scores, labels)
    if not (present + absent).all():
        raise ValueError("a label is unknown; use `context_auc.weighted_context_auc`, pair by pair")
    ranks = np.zeros(scores.shape)
    for j in range(scores.shape[1]):
        rows = absent[:, j] > 0
        ranks[rows, j] = _midranks(scores[rows, j])
    n_with = absent.T @ present
    n_without = absent.sum(axis=0)[:, None] - n_with
    return ratio(ranks.T @ present - n_with * (n_with + 1) / 2, n_with * n_without)


@dataclass(frozen=True)
class ExcessFalsePositives:
    """Mean excess of false positives with context, over pairs of classes.

    excess: mean of `false_positive_rates(…).excess` over the pairs, a fraction, with its interval.
    pairs: number of pairs in the mean.
    undefined: number of excluded pairs, for which no image has the context and lacks the target, or none lacks both.
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
    """How much predictions depend on context, with a bootstrap interval: two [n, k], [m, 2] -> `ExcessFalsePositives`.

    The mean excess is 0 in expectation for predictions that are independent of the context if the target is
    absent, and 1 for predictions that follow the context alone. It is NaN if no pair is defined. A pair without
    images in a resample is excluded from that resample's mean; the interval is NaN if a resample has no pair
    left.

    Args:
        probabilities: probabilities, or logits with a threshold on the same scale.
        labels: 1 where the class is present, −1 where that is unknown: a pair is of the images that know both.
        threshold: one number, or one per class [k].
        pairs: targets and contexts, from `strongest_pairs` of the training set.
        generator: random generator of the bootstrap.
        resamples: number of resamples.
        level: confidence level of the interval.

    Raises:
        ValueError: unequal shapes, a probability that is NaN, pairs that are not two
            different classes, or as `bootstrap.interval`.
    """
    excess = weighted_excess(probabilities, labels, threshold, pairs)
    images = len(np.asarray(labels))
    by_pair = excess(np.ones((1, images)))
    undefined = int(np.isnan(by_pair).sum())
    mean_excess = interval(
        lambda weights: mean_of_defined(excess(weights)),
        images,
        generator=generator,
        resamples=resamples,
        level=level,
        bounds=(-1.0, 1.0),
    )
    return ExcessFalsePositives(mean_excess, by_pair.size - undefined, undefined)


def weighted_excess(probabilities, labels, threshold, pairs) -> Statistic:
    """Excess of false positives of each pair as a statistic: two [n, k], [m, 2] -> (weights [r, n] -> [r, m]).

    An image of weight w counts as w images. Arguments and errors as in `mean_excess_false_positive_rate`.
    """
    predicted, present, absent = _predictions(probabilities, labels, threshold)
    target, context = _pairs(pairs, present.shape[1])
    with_context = absent[:, target] * present[:, context]
    without_context = absent[:, target] * absent[:, context]
    false_positive = predicted[:, target]

    def excess(weights):
        rate_with = ratio(weights @ (with_context * false_positive), weights @ with_context)
        rate_without = ratio(weights @ (without_context * false_positive), weights @ without_context)
        return rate_with - rate_without

    return excess


def _rates(predicted, counted, present, absent) -> Rates:
    """Shares of the counted images [n, k] that are predicted, with and without each context, both [n, k]."""
    hits = predicted * counted
    return Rates(
        with_context=ratio(hits.T @ present, counted.T @ present),
        without_context=ratio(hits.T @ absent, counted.T @ absent),
        overall=ratio(hits.sum(axis=0), counted.sum(axis=0)),
    )


def _midranks(values):
    """Ranks from 1, the mean rank for ties: [n] -> float64 [n]."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(ties) - (ties - 1) / 2)[place]


def _predictions(probabilities, labels, threshold):
    """Predictions, classes present and classes absent as 0.0 or 1.0, so that matrix products count them: three [n, k]."""
    probabilities, present, absent = _checked(probabilities, labels)
    # Compared in the scores' own precision, as in `metrics.thresholded`.
    above = probabilities > np.asarray(threshold, dtype=probabilities.dtype)
    return above.astype(np.float64), present, absent


def _checked(scores, labels):
    scores, (present, absent) = np.asarray(scores), _labels(labels)
    if scores.shape != present.shape:
        raise ValueError(f"scores {scores.shape} and labels {present.shape} must both be [n, k]")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are NaN")
    return scores, present, absent


def _labels(labels):
    """Classes present and absent as 0.0 or 1.0, two [n, k]; an unknown class, −1, is neither."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or not len(labels):
        raise ValueError(f"labels {labels.shape} must be [n, k] of at least one image")
    return (labels > 0).astype(np.float64), (labels == 0).astype(np.float64)


def _pairs(pairs, classes):
    pairs = np.asarray(pairs, np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs {pairs.shape} must be [m, 2], target and context")
    wrong = (pairs < 0).any(axis=1) | (pairs >= classes).any(axis=1) | (pairs[:, 0] == pairs[:, 1])
    if wrong.any():
        raise ValueError(f"pair {pairs[wrong][0].tolist()} is not two different classes below {classes}")
    return pairs[:, 0], pairs[:, 1]
