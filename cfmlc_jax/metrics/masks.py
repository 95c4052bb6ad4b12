"""Generated masks against masks of real objects."""

import numpy as np

# Rows that are compared at once: 64 MB of float32 for masks of 32 × 32 pixels and 4,000 real masks.
_ROWS = 4000


def intersection_over_union(masks, others) -> np.ndarray:
    """Intersection over union of every mask with every other: bool [n, h, w], bool [m, h, w] -> float64 [n, m].

    Two empty masks have 0.
    """
    a = np.asarray(masks, np.float32).reshape(len(masks), -1)
    b = np.asarray(others, np.float32).reshape(len(others), -1)
    intersection = (a @ b.T).astype(np.float64)
    union = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def nearest(masks, others, labels) -> tuple[np.ndarray, np.ndarray]:
    """The nearest real mask by intersection over union: its label int [n], and the value float64 [n].

    Args:
        masks: bool [n, h, w].
        others: real masks, bool [m, h, w].
        labels: of the real masks, int [m].
    """
    values = [
        intersection_over_union(masks[start : start + _ROWS], others) for start in range(0, len(masks), _ROWS)
    ]
    table = np.concatenate(values)
    best = table.argmax(axis=1)
    return np.asarray(labels)[best], table[np.arange(len(table)), best]


def quality(drawn, asked, real, labels) -> dict[str, float]:
    """Metrics of generated masks, percent.

    - shape_accuracy: masks whose nearest real mask is of the class that was asked for;
    - mask_iou: mean intersection over union with that nearest mask;
    - mask_iou_class: mean intersection over union with the nearest real mask of the class that was asked for; NaN
      if a class has no real mask;
    - mask_mean, mask_deviation: mean over all pixels; mean over pixels of the deviation between masks;
    - mask_binary: pixels below .1 or above .9.

    Args:
        drawn: float [n, h, w] in [0, 1]; a pixel above .5 is in the mask.
        asked: the class that each mask was drawn for, int [n].
        real: real masks, bool [m, h, w].
        labels: of the real masks, int [m].
    """
    drawn, asked, labels = np.asarray(drawn), np.asarray(asked), np.asarray(labels)
    inside = drawn > 0.5
    nearest_labels, values = nearest(inside, real, labels)
    return {
        "shape_accuracy": 100 * float((nearest_labels == asked).mean()),
        "mask_iou": 100 * float(values.mean()),
        "mask_iou_class": 100 * float(nearest_of_class(inside, asked, real, labels).mean()),
        "mask_mean": 100 * float(drawn.mean()),
        "mask_deviation": 100 * float(drawn.std(axis=0).mean()),
        "mask_binary": 100 * float(((drawn < 0.1) | (drawn > 0.9)).mean()),
    }


def nearest_of_class(masks, asked, others, labels) -> np.ndarray:
    """Intersection over union of each mask with the nearest real mask of its class: float64 [n]; NaN without any.

    Args:
        masks: bool [n, h, w].
        asked: their classes, int [n].
        others: real masks, bool [m, h, w].
        labels: of the real masks, int [m].
    """
    values = np.full(len(masks), np.nan)
    for k in np.intersect1d(asked, labels):
        of_class = np.asarray(labels) == k
        rows = np.asarray(asked) == k
        values[rows] = nearest(masks[rows], others[of_class], np.asarray(labels)[of_class])[1]
    return values
