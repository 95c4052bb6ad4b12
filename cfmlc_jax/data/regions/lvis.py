"""The official annotations of LVIS v0.5 and v1 (Gupta et al., CVPR 2019), or of one's own data in their form.

The JSON file has `categories` with `frequency` and `image_count`, `images` with `neg_category_ids` and
`not_exhaustive_category_ids`, and `annotations` with `bbox`. Masks are not read. Classes are in ascending order of their
ids, and images likewise. Counts and frequencies are of the training images, in the file of every split.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.data.sources import boxes, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.detection import FREQUENCIES, GroundTruth

OWN = "own"
# Version -> number of categories; training images are for plans.
CATEGORIES = {"v1": 1203, "v0.5": 1230}
TRAINING_IMAGES = {"v1": 100_170, "v0.5": 57_623}
WAY_OUT = "get the JSON files of lvisdataset.org, such as lvis_v1_val.json"
# Least and greatest number of training images of a class of each frequency; files differ on the borders.
_COUNTS = {"r": (0, 10), "c": (10, 100), "f": (100, 10**9)}


@dataclass(frozen=True)
class Category:
    """A class: its id in the files, its name, and how frequent it is in training ("r", "c" or "f")."""

    id: int
    name: str
    frequency: str


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split.

    path: of the file.
    categories: the k classes.
    image_ids: int64 [n], ascending.
    files: of the n images, relative to the folder of COCO 2017's images: "train2017/….jpg" from the address in v1, the name
        in v0.5; "" where the file of annotations has neither.
    truth: boxes, and what else is known of images, by position of image and class.
    """

    path: Path
    categories: tuple[Category, ...]
    image_ids: np.ndarray
    files: tuple[str, ...]
    truth: GroundTruth


class Places:
    """The positions of ids, of which each occurs once.

    Args:
        ids: ascending.
        kind: what they are, for errors: "category_id" or "image_id".
        where: the file that lists them.
    """

    def __init__(self, ids: Iterable[int], kind: str, where: Any):
        self._places = {int(number): place for place, number in enumerate(ids)}
        self._kind, self._where = kind, where

    def of(self, number: Any, where: str) -> int:
        """The position of an id.

        Raises:
            InputError: there is no such id.
        """
        place = self._places.get(number) if type(number) is int else None
        if place is None:
            ids = list(self._places)
            between = f" between {ids[0]} and {ids[-1]}" if ids else ""
            raise InputError(
                f"{where}: {self._kind} {fields.shown(number)} is not one of the {len(ids):,}{between} of {self._where}; "
                "use files of the same version and split"
            )
        return place


def read(path: Path, version: str = OWN, *, training: bool = False) -> Annotations:
    """The annotations of a file, checked.

    Args:
        path: of the JSON file.
        version: "v1" or "v0.5": the file must have that many categories; "own": any number.
        training: the file is of the training split, so that its categories must be in as many images as they say.

    Raises:
        InputError: the file cannot be read, or an entry is missing, wrong, or contradicts another.
    """
    content = files.read_json(path, WAY_OUT, _without_mask)
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: the file is not an object with categories, images and annotations; {WAY_OUT}"
        )
    categories, counts = _categories(content, path)
    if version != OWN and len(categories) != CATEGORIES[version]:
        raise InputError(
            f"{path} has {len(categories):,} categories, LVIS {version} has {CATEGORIES[version]:,}; give the file of that "
            f"version, or set data.version (--release) to one of {', '.join((*CATEGORIES, OWN))}"
        )
    images = sorted(_entries(content, "images", path), key=lambda image: _id(image, "id", "images", path))
    ids = np.array([image["id"] for image in images], np.int64)
    _require_distinct(ids, f"{path}: images")
    classes = Places([category.id for category in categories], "category_id", path)
    rows, labels, sides = _boxes(
        _entries(content, "annotations", path), Places(ids, "image_id", path), classes, path
    )
    truth = GroundTruth(
        images=rows,
        classes=labels,
        boxes=sides,
        frequency=np.array([category.frequency for category in categories]),
        absent=_pairs(images, "neg_category_ids", classes, path),
        incomplete=_pairs(images, "not_exhaustive_category_ids", classes, path),
    )
    names = tuple(_file(image, path) for image in images)
    annotations = Annotations(path, categories, ids, names, truth)
    _require_consistent(annotations, counts if training else None)
    return annotations


def _without_mask(entry):
    """An object of the file without its polygons, which are most of the file."""
    entry.pop("segmentation", None)
    return entry


def _file(image, path) -> str:
    """The file of an image; v0.5 has names of COCO 2014, whose last 16 letters are those of 2017."""
    name, address = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(address, str):
        name = "/".join(address.split("/")[-2:])
    if name is None:
        return ""
    name = fields.relative_path(name, f"{path}: image {image['id']}")
    return name[-16:] if name.startswith("COCO_") else name


def _categories(content, path) -> tuple[tuple[Category, ...], list[int]]:
    read = []
    for entry in _entries(content, "categories", path):
        number = _id(entry, "id", "categories", path)
        where = f"{path}: category {number}"
        frequency, count = entry.get("frequency"), entry.get("image_count")
        if frequency not in FREQUENCIES:
            raise InputError(
                f"{where} has frequency {fields.shown(frequency)}; wanted r, c or f, as the files of LVIS have"
            )
        if type(count) is not int:
            raise InputError(f"{where} has image_count {fields.shown(count)}; wanted a whole number")
        least, most = _COUNTS[frequency]
        if not least <= count <= most:
            raise InputError(
                f"{where} has frequency {frequency!r} but image_count {count}: rare classes are in at most 10 training "
                "images, common ones in at most 100; correct one of them"
            )
        read.append((Category(number, fields.as_class_name(entry.get("name"), where), frequency), count))
    if not read:
        raise InputError(f"{path} has no category; {WAY_OUT}")
    read.sort(key=lambda each: each[0].id)
    _require_distinct([category.id for category, _ in read], f"{path}: categories")
    return tuple(category for category, _ in read), [count for _, count in read]


def _boxes(entries, images: Places, classes: Places, path):
    """Image int64 [m], class int32 [m] and box float64 [m, 4] of the annotations."""
    rows, labels, sides = [], [], []
    for entry in entries:
        where = f"{path}: annotation {fields.shown(entry.get('id'))}"
        rows.append(images.of(entry.get("image_id"), where))
        labels.append(classes.of(entry.get("category_id"), where))
        for mark in ("iscrowd", "ignore"):
            if entry.get(mark):
                raise InputError(
                    f"{where} has {mark} {fields.shown(entry[mark])}, but the rules of LVIS know no such boxes; remove it, and add "
                    "its category to not_exhaustive_category_ids of its image"
                )
        box = entry.get("bbox")
        reason = boxes.reason_against(box)
        if reason:
            raise InputError(f"{where}: {reason}; wanted left, top, width and height in pixels")
        sides.append(box)
    return np.array(rows, np.int64), np.array(labels, np.int32), np.array(sides, np.float64).reshape(-1, 4)


def _require_consistent(annotations: Annotations, counts: list[int] | None) -> None:
    """Raise if an image has a class that it is said not to have, or, with counts, if a class is in other images."""
    truth, categories = annotations.truth, annotations.categories
    present = np.unique(np.stack([truth.images, truth.classes], axis=1), axis=0)
    keys = present[:, 0] * len(categories) + present[:, 1]
    wrong = np.flatnonzero(np.isin(truth.absent[:, 0] * len(categories) + truth.absent[:, 1], keys))
    if len(wrong):
        image, label = truth.absent[wrong[0]]
        raise InputError(
            f"{annotations.path}: image {annotations.image_ids[image]} has category {categories[label].id} in "
            "neg_category_ids and in an annotation; remove one of them"
        )
    if counts is None:
        return
    counted = np.bincount(present[:, 1], minlength=len(categories))
    for category, said, number in zip(categories, counts, counted):
        if said != number:
            raise InputError(
                f"{annotations.path}: category {category.id} ({category.name}) has image_count {said}, but annotations in "
                f"{number} images; give the complete file of the training split"
            )


def _pairs(images, name, classes: Places, path) -> np.ndarray:
    """Pairs (image, class) of a list of category ids in the images: int64 [p, 2]."""
    pairs = []
    for place, image in enumerate(images):
        where = f"{path}: {name} of image {image['id']}"
        listed = image.get(name)
        if not isinstance(listed, list):
            raise InputError(f"{where} is {fields.shown(listed)}, not a list of category ids; {WAY_OUT}")
        pairs += [(place, classes.of(number, where)) for number in listed]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _entries(content: Mapping[str, Any], name: str, path: Path) -> list[dict]:
    entries = content.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: {name} is not a list of objects; {WAY_OUT}")
    return entries


def _id(entry, name, kind, path) -> int:
    value = entry.get(name)
    if type(value) is not int or not -(2**63) <= value < 2**63:
        raise InputError(
            f"{path}: {kind} has the {name} {fields.shown(value)}, not a whole number of 64 bits; {WAY_OUT}"
        )
    return value


def _require_distinct(ids, where):
    values, counts = np.unique(np.asarray(ids, np.int64), return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{where}: the id {values[counts > 1][0]} is there twice; keep one of them")
