"""Single-label images from lists of `path label` lines, the format of ImageNet-LT and Places-LT."""

import posixpath
import re
from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import fields, files, imbalance, listed
from cfmlc_jax.data.sources.listed import Row
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

# Prefixes of the lists' names, before "_train.txt", "_val.txt" and "_test.txt".
STEMS = {"imagenet_lt": "ImageNet_LT", "places_lt": "Places_LT"}
SPLITS = ("train", "val", "test")
# Classes, training images, and images of the most common class, as published (Liu et al., CVPR 2019).
PUBLISHED = {"imagenet_lt": (1000, 115_846, 1280), "places_lt": (365, 62_500, 4980)}
_DIGITS = re.compile(r"[0-9]{1,9}")


class ImageList(files.FileSource):
    """A split from `root/<stem>_<split>.txt`, with records in the order of the lines.

    A line is a path relative to root, a blank, and the number of the image's class. The
    classes are those of the training list, 0 to k − 1. A class's name is its line in
    `root/classes.txt` if that file exists; otherwise the folder of its training images if every class
    has its own folder ("n01440764", "airfield"); otherwise "class 17". An id is the path
    (`fields.relative_path`).

    class_counts: training images of each class, int64 [k], for every split.

    Args:
        root: the folder of the lists, to which paths are relative.
        split: one of `SPLITS`.
        stem: prefix of the lists' names.

    Raises:
        InputError: a line of another form, a label that is not a class, an image that is missing or
            listed twice (with list and line); an empty list, or a class without training images.
    """

    def __init__(self, root: str | Path, split: str, *, stem: str):
        if split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        root = path_of(root)
        training = read_list(root / f"{stem}_train.txt")
        self.class_counts = _class_counts(root / f"{stem}_train.txt", training)
        path = root / f"{stem}_{split}.txt"
        rows = training if split == "train" else read_list(path)
        k = len(self.class_counts)
        for row in rows:
            if row.labels >= k:
                raise InputError(
                    f"{path} line {row.line}: label {row.labels}, but {stem}_train.txt has the classes 0 to {k - 1}; "
                    "use lists of the same release"
                )
        super().__init__(
            root=root,
            split=split,
            paths=listed.image_paths(path, rows, "unpack the images there or remove the line"),
            ids=[row.file for row in rows],
            labels=imbalance.one_hot(np.array([row.labels for row in rows]), k),
            class_names=_class_names(root, training, k),
        )


def read_list(path: Path) -> list[Row]:
    """The rows of a list, without empty lines.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has no image; a line is not a path and a whole
            number of 0 or more, or an image is listed twice (with the line).
    """
    way_out = "lists of `path label` lines are in data/ of the reference's repositories"
    lines = enumerate(files.read_text(path, way_out).splitlines(), 1)
    rows = [_row(path, number, line) for number, line in lines if line.strip()]
    if not rows:
        raise InputError(f"{path}: no image in it; write one `path label` per line")
    listed.require_unique(path, rows, "keep one of them")
    return rows


def _row(path, number, line):
    file, *label = line.strip().rsplit(maxsplit=1)
    # At most nine digits, which are enough for the classes of any data set.
    if not label or not _DIGITS.fullmatch(label[0]):
        raise InputError(
            f"{path} line {number}: {line.strip()!r} is not a path, a blank and the number of a class; fix the line"
        )
    return Row(number, file, fields.relative_path(file, f"{path} line {number}"), int(label[0]))


def _class_counts(path, rows):
    used = {row.labels for row in rows}
    last = max(rows, key=lambda row: row.labels)
    empty = last.labels + 1 - len(used)
    if empty:
        first = next(number for number in range(last.labels) if number not in used)
        raise InputError(
            f"{path}: label {first} has no image, though line {last.line} has label {last.labels} "
            f"({empty} such labels); number the classes without gaps"
        )
    return np.bincount([row.labels for row in rows])


def _class_names(root, training, k):
    path = root / "classes.txt"
    if path.is_file():
        names = files.read_class_list(path, "write one class per line")
        if len(names) != k or len(set(names)) != k:
            raise InputError(
                f"{path}: {len(set(names))} different names in {len(names)} lines, wanted {k} classes; "
                "write one name per line, in the order of the labels"
            )
        return tuple(names)
    folders: list[set[str]] = [set() for _ in range(k)]
    for row in training:
        folders[row.labels].add(posixpath.basename(posixpath.dirname(row.file)))
    names = [min(own) for own in folders]
    if all(len(own) == 1 for own in folders) and all(names) and len(set(names)) == k:
        return tuple(names)
    return tuple(f"class {number}" for number in range(k))
