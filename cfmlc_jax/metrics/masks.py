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
