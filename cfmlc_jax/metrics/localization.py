"""Localisation by pivot patches: does the pivot patch of a class contain its objects' boxes?

The unit is a *pair*: an image, and a class with a box in it. The whole view stretches the image to
a square that is divided into patches, so boxes are stretched along with it.

- hit: the pivot contains the largest part of one of the class's boxes. If several patches contain equally
  large parts (an object centred on a cut, or inside the overlap), all of them count.
- share: the fraction of a box's area inside the pivot, for the box of the class with the largest
  fraction.

Both are reported with their exact expectation for a uniformly drawn patch (chance) and the maximum over
patches (best): an object that spans the grid can be a hit by luck but never has a large share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.causal.views import Box

# COCO's limits between small, medium and large objects, in pixels (cocodataset.org, "Detection
# evaluation"). COCO measures an object's mask; here it is the box.
SMALL, LARGE = 32**2, 96**2
# The same as fractions of the image; COCO's images are mostly 640 x 480.
SMALL_RELATIVE, LARGE_RELATIVE = SMALL / (640 * 480), LARGE / (640 * 480)
# Shares of a box that differ by less than this, that is by rounding, are equal.
TIE = 1e-9


@dataclass(frozen=True)
class Pairs:
    """Hits and shares of the pivots for m pairs of an image and a class with a box; arrays [m].

    image, label: index of the image and of the class, int64.
    hit: whether the pivot contains the largest part of a box.
    chance_hit, best_hit: hit of a uniformly drawn patch, and of the best patch (0 only for objects in the
        remainder of the grid's division, which belongs to no patch).
    share: largest fraction of one of the class's boxes inside the pivot.
    chance_share, best_share: mean and maximum of this fraction over patches.
    area: area of the class's largest box, in pixels of the image as stored, cut to the image.
    relative_area: area of that box as a fraction of the image.
    images_without_boxes: number of images without boxes, which are excluded.
    boxes_without_area: number of boxes that are empty or outside the image, which are excluded.
    """

    image: np.ndarray
    label: np.ndarray
    hit: np.ndarray
    chance_hit: np.ndarray
    best_hit: np.ndarray
    share: np.ndarray
    chance_share: np.ndarray
    best_share: np.ndarray
    area: np.ndarray
    relative_area: np.ndarray
    images_without_boxes: int
    boxes_without_area: int


@dataclass(frozen=True)
class Rates:
    """Means over pairs, fractions; NaN over none. Names as in `Pairs`."""

    pairs: int
    hit: float
    chance_hit: float
    best_hit: float
    share: float
    chance_share: float
    best_share: float


def localize(
    pivot,
    corners,
    classes,
    images,
    sizes,
    *,
    size: int,
    patch_boxes: Sequence[Box],
) -> Pairs:
    """Hits and shares of the pivot patches of n images for m boxes: int [n, k] -> `Pairs`.

    Args:
        pivot: patch index by image and class, `causal.patches.pivot(attention)`.
        corners: [m, 4], left, top, right, bottom of each box in pixels of its image as stored; boxes are cut to
            the image if they reach beyond it. (Images turned upright by their EXIF orientation do
            not match their boxes.)
        classes: [m], the class of each box.
        images: [m], the image of each box.
        sizes: [n, 2], width and height of each image as stored, pixels; ignored for images without a
            box.
        size: side of the whole view, pixels.
        patch_boxes: the patches in the whole view, as `causal.views.patch_boxes` gives them.

    Raises:
        ValueError: shapes that do not match; a pivot, class or image that does not exist; an image
            without pixels; a box whose right or bottom is less than its left or top.
    """
    patches = np.array(patch_boxes, np.float64)
    pivot, sizes = _checked_pivots(pivot, sizes, len(patches))
    num_images, num_classes = pivot.shape
    corners, labels, owners = _checked_boxes(corners, classes, images, sizes, num_classes)
    corners = _cut(corners, sizes[owners])
    areas = _areas(corners)
    real = areas > 0
    owners, corners, labels, areas = owners[real], corners[real], labels[real], areas[real]

    shares = _shares(corners * np.tile(size / sizes[owners], 2), patches)
    most = shares.max(axis=1, keepdims=True)
    largest = (shares >= most - TIE) & (most > 0)
    keys, first, order = _groups(owners * num_classes + labels)
    image, label = np.divmod(keys, num_classes)
    accepted = np.logical_or.reduceat(largest[order], first, axis=0)
    largest_share = np.maximum.reduceat(shares[order], first, axis=0)
    area = np.maximum.reduceat(areas[order], first)
    chosen = pivot[image, label]
    rows = np.arange(len(keys))
    return Pairs(
        image=image,
        label=label,
        hit=accepted[rows, chosen],
        chance_hit=accepted.mean(axis=1),
        best_hit=accepted.max(axis=1),
        share=largest_share[rows, chosen],
        chance_share=largest_share.mean(axis=1),
        best_share=largest_share.max(axis=1),
        area=area,
        relative_area=area / sizes[image].prod(axis=1),
        images_without_boxes=num_images - len(np.unique(image)),
        boxes_without_area=int((~real).sum()),
    )


def rates(pairs: Pairs, among=None) -> Rates:
    """Mean hit and share over the pairs, or over those where the mask `among` [m] is True."""
    among = np.ones(len(pairs.hit), bool) if among is None else np.asarray(among, bool)
    if among.shape != pairs.hit.shape:
        raise ValueError(f"the mask {among.shape} must be [m], one for each of {len(pairs.hit)} pairs")
    return Rates(
        pairs=int(among.sum()),
        hit=_mean(pairs.hit[among]),
        chance_hit=_mean(pairs.chance_hit[among]),
        best_hit=_mean(pairs.best_hit[among]),
        share=_mean(pairs.share[among]),
        chance_share=_mean(pairs.chance_share[among]),
        best_share=_mean(pairs.best_share[among]),
    )


def by_class(pairs: Pairs, classes: int) -> list[Rates]:
    """Rates of each class, in label order: a list of k `Rates`."""
    return [rates(pairs, pairs.label == k) for k in range(classes)]


def by_size(pairs: Pairs, *, relative: bool) -> dict[str, Rates]:
    """Rates of "small", "medium" and "large" objects, by the area of the class's largest box.

    Args:
        pairs: the result of `localize`.
        relative: compare fractions of the image, with COCO's limits of 32² and 96² pixels as fractions of
            640 x 480 (1/300 and 3/100), for images of other sizes than COCO's. False: compare pixels.
    """
    area = pairs.relative_area if relative else pairs.area
    small, large = (SMALL_RELATIVE, LARGE_RELATIVE) if relative else (SMALL, LARGE)
    return {
        "small": rates(pairs, area < small),
        "medium": rates(pairs, (area >= small) & (area < large)),
        "large": rates(pairs, area >= large),
    }


def by_span(pairs: Pairs, least: float = 0.5) -> dict[str, Rates]:
    """Rates of objects that fit into a patch ("within") and of those that do not ("spanning").

    Args:
        pairs: the result of `localize`.
        least: a pair is "spanning" if no patch contains this fraction of any of its boxes.
    """
    within = pairs.best_share >= least - TIE
    return {"within": rates(pairs, within), "spanning": rates(pairs, ~within)}


def _checked_pivots(pivot, sizes, patches):
    pivot, sizes = np.asarray(pivot), np.asarray(sizes, np.float64)
    if pivot.ndim != 2 or not np.issubdtype(pivot.dtype, np.integer):
        raise ValueError(f"pivot {pivot.dtype} {pivot.shape} must be int [n, k]")
    if sizes.shape != (len(pivot), 2):
        raise ValueError(f"pivots of {len(pivot)} images and sizes {sizes.shape} do not match; give [n, 2]")
    if pivot.size and not (pivot.min() >= 0 and pivot.max() < patches):
        raise ValueError(f"pivots from {pivot.min()} to {pivot.max()} are not all of {patches} patches")
    return pivot, sizes


def _checked_boxes(corners, classes, images, sizes, num_classes):
    """Corners float64 [m, 4], classes int64 [m], images int64 [m]."""
    corners = np.asarray(corners, np.float64)
    classes, images = np.asarray(classes, np.int64), np.asarray(images, np.int64)
    if corners.shape != (len(classes), 4) or classes.shape != images.shape or classes.ndim != 1:
        raise ValueError(
            f"boxes {corners.shape}, classes {classes.shape} and images {images.shape} do not match; "
            "give [m, 4], [m] and [m]"
        )
    if images.size and not (images.min() >= 0 and images.max() < len(sizes)):
        raise ValueError(
            f"boxes belong to images {images.min()} to {images.max()}, but there are pivots of {len(sizes)} images"
        )
    empty = ~(sizes[images] > 0).all(axis=1)
    if empty.any():
        raise ValueError(f"image {images[empty.argmax()]} has no pixels")
    ordered = (corners[:, 2:] >= corners[:, :2]).all(axis=1)
    if not ordered.all():
        bad = int(np.flatnonzero(~ordered)[0])
        raise ValueError(f"image {images[bad]}: box {corners[bad].tolist()} is not left, top, right, bottom")
    if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
        raise ValueError(
            f"boxes belong to classes {classes.min()} to {classes.max()}, but there are pivots of {num_classes} classes"
        )
    return corners, classes, images


def _cut(corners, sizes):
    return np.clip(corners, 0.0, np.tile(sizes, 2))


def _areas(corners):
    return (corners[:, 2:] - corners[:, :2]).prod(axis=1)


def _shares(corners, patches):
    """Fraction of each box's area inside each patch: [m, 4], [p, 4] -> [m, p]."""
    left_top = np.maximum(corners[:, None, :2], patches[None, :, :2])
    right_bottom = np.minimum(corners[:, None, 2:], patches[None, :, 2:])
    return np.maximum(right_bottom - left_top, 0.0).prod(axis=2) / _areas(corners)[:, None]


def _groups(keys):
    """Distinct keys in ascending order, the index of each one's first in the order, and the order that sorts keys."""
    order = np.argsort(keys, kind="stable")
    distinct, first = np.unique(keys[order], return_index=True)
    return distinct, first, order


def _mean(values):
    return float(values.mean()) if values.size else float("nan")
