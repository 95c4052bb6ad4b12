"""Average precision, in the two definitions used in published multi-label results."""

import numpy as np

AP_DEFINITIONS = ("sklearn", "voc")


def average_precision(scores, labels, definition: str, weights=None) -> np.ndarray:
    """Average precision of each class: two [n, k] -> float64 [k] in [0, 1].

    Tied scores share one threshold, so the result does not depend on the order of images. (The
    reference's VOC variant breaks ties by an unstable sort; without ties the values are equal.)

    Args:
        scores: any increasing function of the probabilities.
        labels: 1 where the class is present, −1 where that is unknown: a class is scored on its known images.
        definition: "sklearn" sums precision × recall step without interpolation, and is 0 for a
            class without positives, as in the reference's inference scripts. "voc" is the area
            under the precision envelope (all points, as in VOC since 2010), and NaN for a class
            without positives, as in the reference's training.
        weights: how many times each image counts, [n], none below 0; None: once.

    Raises:
        ValueError: an unknown definition, unequal shapes, or a score that is NaN.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    if definition not in AP_DEFINITIONS:
        raise ValueError(f"AP definition {definition!r} is not one of {', '.join(AP_DEFINITIONS)}")
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [n, k]")
    if weights.shape != scores.shape[:1]:
        raise ValueError(f"weights {weights.shape} must be [n], as many as scores {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} scores are NaN")
    return np.array(
        [_one_class(scores[:, k], labels[:, k], weights, definition) for k in range(scores.shape[1])]
    )


def mean_average_precision(scores, labels, definition: str, weights=None) -> float:
    """Mean average precision over the classes, in percent: two [n, k] -> float.

    With "voc", classes without positives are excluded; with "sklearn" they count as 0 (see
    `average_precision`). NaN if no class has a positive and the definition is "voc".
    """
    ap = average_precision(scores, labels, definition, weights)
    defined = ap[~np.isnan(ap)]
    return float(100 * defined.mean()) if defined.size else float("nan")


def _one_class(scores, labels, weights, definition):
    known = labels >= 0
    scores, weights = scores[known], weights[known]
    positive = weights * (labels[known] > 0)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    true_positives = np.cumsum(positive[order])[last_of_tie]
    predicted = np.cumsum(weights[order])[last_of_tie]
    total = true_positives[-1] if len(ranked) else 0
    if total == 0:
        return 0.0 if definition == "sklearn" else np.nan
    # Above the first image of a weight nothing is predicted, rightly or wrongly.
    precision = np.divide(true_positives, predicted, out=np.zeros_like(predicted), where=predicted > 0)
    if definition == "voc":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.sum(np.diff(true_positives / total, prepend=0.0) * precision)
