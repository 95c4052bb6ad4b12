"""Detections from scores of regions, and the average precision of boxes by LVIS' rules (Gupta et al., CVPR 2019).

LVIS annotates by federation: of each image only some classes are known. A detection of a class that is neither
annotated in its image nor listed as absent from it is not counted. Nor is one that matches no box where the class's boxes are
listed as incomplete. Classes are grouped by the number of training images that have them: rare, common, frequent.
"""

import itertools
from dataclasses import dataclass

import numpy as np

FREQUENCIES = ("r", "c", "f")
METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf")
# Overlaps at which a detection counts as a match, and recalls at which precision is read.
OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Detections:
    """n detections, in any order.

    images: int64 [n], positions of the images.
    classes: int32 [n].
    scores: float [n].
    boxes: float64 [n, 4], left, top, width, height in pixels, as files state them.
    """

    images: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, most: int) -> "Detections":
        """The `most` detections of the highest score of each image; equal scores in the order given."""
        order = np.lexsort((-np.asarray(self.scores, np.float64), self.images))
        images = self.images[order]
        kept = np.sort(order[_rank(images) < most])
        return Detections(self.images[kept], self.classes[kept], self.scores[kept], self.boxes[kept])


@dataclass(frozen=True)
class GroundTruth:
    """The annotated boxes, and what else is known of images.

    images: int64 [m], positions of the boxes' images.
    classes: int32 [m].
    boxes: float64 [m, 4], left, top, width, height in pixels, as files state them.
    frequency: str [k] of `FREQUENCIES`.
    absent: int64 [a, 2], pairs (image, class) of which it is known that the image does not have the class.
    incomplete: int64 [i, 2], pairs (image, class) of which not all boxes are annotated.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    frequency: np.ndarray
    absent: np.ndarray
    incomplete: np.ndarray

    @property
    def corners(self) -> np.ndarray:
        """Left, top, right, bottom of the boxes: float64 [m, 4]."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)


def sides(corners) -> np.ndarray:
    """Left, top, width, height of boxes by their left, top, right, bottom: [n, 4] -> float64 [n, 4]."""
    corners = np.asarray(corners, np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def overlaps(one, other) -> np.ndarray:
    """Intersection over union of boxes, 0 where a union is empty: corners [n, 4], [m, 4] -> float64 [n, m]."""
    return _overlaps(sides(one), sides(other))


def _overlaps(one, other) -> np.ndarray:
    """The same of boxes by left, top, width, height, rounded as in COCO's program.

    An overlap may be exactly one of `OVERLAPS`, where the rounding decides: areas are of the sides that a file states, not
    of the differences of corners.
    """
    a, b = one[:, None], other[None]
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = (ends - np.maximum(a[..., :2], b[..., :2])).clip(0).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def detect(scores, corners, *, least: float, overlap: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The detections of an image: scores [r, k], corners [r, 4] -> regions int64 [n], classes int64 [n].

    Each class has its own non-maximum suppression: a region is dropped if it overlaps one of a higher score. All
    classes share the regions' boxes. The result is in descending order of scores.

    Args:
        scores: of the regions by class, without the background.
        corners: of the regions.
        least: lower scores, and this one, are dropped.
        overlap: intersection over union above which a region is dropped.
        most: greatest number of detections; those of the highest scores are kept.
    """
    scores = np.asarray(scores)
    above = np.flatnonzero(scores > least)
    corners = np.asarray(corners)
    dropped = np.zeros(scores.shape, bool)
    kept: list[int] = []
    for entry in _descending(scores.reshape(-1)[above], first=4 * most):
        if len(kept) == most:
            break
        region, label = divmod(int(above[entry]), scores.shape[1])
        if not dropped[region, label]:
            kept.append(int(above[entry]))
            # Not of all regions at once: few of a thousand are kept.
            dropped[:, label] |= overlaps(corners[region : region + 1], corners)[0] > overlap
    regions, classes = np.divmod(np.array(kept, np.int64), scores.shape[1])
    return regions, classes


def _descending(scores, first):
    """Positions of scores [n] in descending order; the first ones are found without sorting all of a million."""
    if len(scores) > 2 * first:
        border = np.partition(scores, -first)[-first]
        top = np.flatnonzero(scores >= border)
        yield from top[np.argsort(-scores[top], kind="stable")]
        rest = np.flatnonzero(scores < border)
    else:
        rest = np.arange(len(scores))
    yield from rest[np.argsort(-scores[rest], kind="stable")]


def average_precision(truth: GroundTruth, detections: Detections, *, most: int = 300) -> np.ndarray:
    """Average precision by overlap and class: float64 [10, k] in [0, 1]; NaN for classes without a box.

    At each overlap of `OVERLAPS`, detections in descending order of scores take the free box of their image and class
    that they overlap most. Precision is made monotonous, and its mean over `RECALLS` taken. A class with
    boxes but no detection has 0.

    Args:
        truth: the annotated boxes.
        detections: of the same images and classes.
        most: detections of an image that count, those of the highest scores.
    """
    num_classes = len(truth.frequency)
    precision = np.full((len(OVERLAPS), num_classes), np.nan)
    detections = detections.best(most)
    annotated = _keys(truth.images, truth.classes, num_classes)
    incomplete = _keys(truth.incomplete[:, 0], truth.incomplete[:, 1], num_classes)
    keys = _keys(detections.images, detections.classes, num_classes)
    known = np.isin(
        keys, np.concatenate([annotated, _keys(truth.absent[:, 0], truth.absent[:, 1], num_classes)])
    )
    places = np.flatnonzero(known)
    # By class, then by image, then by score.
    scores = np.asarray(detections.scores, np.float64)
    places = places[np.lexsort((-scores[places], detections.images[places], detections.classes[places]))]
    by_key = np.argsort(annotated, kind="stable")
    for label in np.unique(truth.classes):
        own = places[detections.classes[places] == label]
        matched = np.zeros((len(OVERLAPS), len(own)), bool)
        for rows in _runs(keys[own]):
            key = keys[own[rows.start]]
            boxes = by_key[slice(*np.searchsorted(annotated[by_key], [key, key + 1]))]
            if len(boxes):
                matched[:, rows] = _matched(_overlaps(detections.boxes[own[rows]], truth.boxes[boxes]))
        counts = matched | ~np.isin(keys[own], incomplete)
        order = np.argsort(-scores[own], kind="stable")
        num_boxes = int((truth.classes == label).sum())
        precision[:, label] = [
            _interpolated(hits[order], counted[order], num_boxes) for hits, counted in zip(matched, counts)
        ]
    return precision


def summary(precision: np.ndarray, frequency) -> dict[str, float]:
    """`METRICS` in percent: of all overlaps, of .5 and .75, and of classes by frequency.

    A frequency without an annotated class is left out.

    Args:
        precision: [10, k] from `average_precision`.
        frequency: [k] of `FREQUENCIES`.
    """
    frequency = np.asarray(frequency)
    parts = {"AP": precision, "AP50": precision[:1], "AP75": precision[5:6]}
    parts |= {f"AP{group}": precision[:, frequency == group] for group in FREQUENCIES}
    return {name: 100 * float(np.nanmean(part)) for name, part in parts.items() if not np.isnan(part).all()}


def _keys(images, classes, num_classes):
    """One number for each pair of an image and a class."""
    return np.asarray(images, np.int64) * num_classes + np.asarray(classes, np.int64)


def _rank(sorted_keys):
    """The position of each entry among those of equal key: [n] sorted -> int64 [n]."""
    starts = np.searchsorted(sorted_keys, sorted_keys)
    return np.arange(len(sorted_keys)) - starts


def _runs(keys):
    """Slices of equal consecutive keys."""
    borders = [0, *(np.flatnonzero(np.diff(keys)) + 1), len(keys)]
    return [slice(start, stop) for start, stop in itertools.pairwise(borders) if stop > start]


def _matched(shares):
    """Whether each detection takes a box, at each overlap: [n, m], by descending score -> bool [10, n]."""
    number, boxes = shares.shape
    matched = np.zeros((len(OVERLAPS), number), bool)
    free = np.ones((len(OVERLAPS), boxes), bool)
    for i, row in enumerate(shares):
        open_shares = np.where(free, row, -1.0)
        # Of equal overlaps the last box, as in LVIS' own program.
        best = boxes - 1 - open_shares[:, ::-1].argmax(axis=1)
        matched[:, i] = np.take_along_axis(open_shares, best[:, None], 1)[:, 0] >= OVERLAPS
        free[matched[:, i], best[matched[:, i]]] = False
    return matched


def _interpolated(hits, counted, num_boxes):
    """Mean over `RECALLS` of monotonous precision; detections by descending score."""
    true = np.cumsum(hits)
    false = np.cumsum(counted & ~hits)
    precision = np.maximum.accumulate((true / (true + false + np.spacing(1)))[::-1])[::-1]
    at = np.searchsorted(true / num_boxes, RECALLS)
    return float(np.append(precision, 0.0)[at].mean())
