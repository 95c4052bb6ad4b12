"""Average precision, in the two definitions used in published multi-label results."""

import numpy as np

AP_DEFINITIONS = ("sklearn", "voc")


def average_precision(scores, labels, definition: str) -> np.ndarray:
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
    return np.array([_one_class(scores[:, k], labels[:, k], definition) for k in range(scores.shape[1])])


def mean_average_precision(scores, labels, definition: str) -> float:
    """Mean average precision over the classes, in percent: two [n, k] -> float.

    With "voc", classes without positives are excluded; with "sklearn" they count as 0 (see
    `average_precision`). NaN if no class has a positive and the definition is "voc".
    """
    ap = average_precision(scores, labels, definition)
    defined = ap[~np.isnan(ap)]
    return float(100 * defined.mean()) if defined.size else float("nan")


def _one_class(scores, labels, definition):
    known = labels >= 0
    scores, positive = scores[known], labels[known] > 0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    true_positives = np.cumsum(positive[order], dtype=np.float64)[last_of_tie]
    predicted = (np.flatnonzero(last_of_tie) + 1).astype(np.float64)
    total = positive.sum()
    if total == 0:
        return 0.0 if definition == "sklearn" else np.nan
    precision = true_positives / predicted
    if definition == "voc":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.sum(np.diff(true_positives / total, prepend=0.0) * precision)
