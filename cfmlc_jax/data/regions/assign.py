"""Which annotated object a region is of."""

import numpy as np

from cfmlc_jax.metrics.detection import overlaps


def assign(boxes, corners, classes, *, overlap: float, background: int) -> np.ndarray:
    """The label of each region: the class of the object that it overlaps most, or the background, int32 [r].

    Args:
        boxes: of the regions [r, 4], left, top, right, bottom.
        corners: of the objects [m, 4].
        classes: of the objects [m].
        overlap: least intersection over union with an object. The stages of a cascade have .5, .6 and .7.
        background: label of regions without an object.
    """
    boxes, classes = np.asarray(boxes).reshape(-1, 4), np.asarray(classes, np.int32)
    if not len(classes):
        return np.full(len(boxes), background, np.int32)
    shares = overlaps(boxes, corners)
    return np.where(shares.max(axis=1) >= overlap, classes[shares.argmax(axis=1)], background).astype(
        np.int32
    )
