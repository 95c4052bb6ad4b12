"""Precision, recall and F1 of predictions: per class (C…) and overall (O…)."""

import numpy as np

from cfmlc_jax.shapes import shaped

# The reference's thresholds, rounded because 0.5 + 0.05·i has binary noise, which would show in metrics' names.
THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


@shaped("n k, n k")
def thresholded(scores, labels, threshold) -> dict[str, float]:
    """CP, CR, CF1, OP, OR, OF1 in percent of the predictions scores > threshold: two [n, k] -> dict.

    Args:
        scores: probabilities.
        labels: 1 where the class is present, −1 where that is unknown: such entries are left out.
        threshold: one number, or one per class [k]; compared in the scores' own precision.
    """
    scores = np.asarray(scores)
    return precision_recall(scores > np.asarray(threshold, dtype=scores.dtype), labels)


@shaped("n k, n k")
def precision_recall(predicted, labels) -> dict[str, float]:
    """CP, CR, CF1, OP, OR, OF1 in percent: two [n, k] -> dict.

    CP and CR are means of per-class ratios; CP excludes classes that are never predicted, and CR
    classes without positives. OP and OR are ratios of summed counts. CF1 and OF1 are the harmonic means of
    these. A ratio 0/0 is NaN.

    Args:
        predicted: True where the class is predicted.
        labels: 1 where the class is present, −1 where that is unknown: such entries are left out.
    """
    predicted, labels = np.asarray(predicted) & (np.asarray(labels) >= 0), np.asarray(labels) > 0
    hits = (predicted & labels).sum(axis=0, dtype=np.float64)
    n_predicted = predicted.sum(axis=0, dtype=np.float64)
    n_positive = labels.sum(axis=0, dtype=np.float64)
    cp = _mean(hits[n_predicted > 0] / n_predicted[n_predicted > 0])
    cr = _mean(hits[n_positive > 0] / n_positive[n_positive > 0])
    op = _ratio(hits.sum(), n_predicted.sum())
    or_ = _ratio(hits.sum(), n_positive.sum())
    values = {"CP": cp, "CR": cr, "CF1": _f1(cp, cr), "OP": op, "OR": or_, "OF1": _f1(op, or_)}
    return {name: 100 * value for name, value in values.items()}


def _mean(values):
    return float(values.mean()) if values.size else float("nan")


def _ratio(part, whole):
    return float(part / whole) if whole else float("nan")


def _f1(precision, recall):
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)
