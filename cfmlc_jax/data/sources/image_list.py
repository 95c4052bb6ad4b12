"""Single-label images named by lists, one `path label` a line, as ImageNet-LT and Places-LT are given out."""

import posixpath
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.data.sources import files, imbalance
from cfmlc_jax.errors import InputError

# Beginnings of the lists' names, before "_train.txt", "_val.txt" and "_test.txt".
STEMS = {"imagenet_lt": "ImageNet_LT", "places_lt": "Places_LT"}
SPLITS = ("train", "val", "test")


class Row(NamedTuple):
    """A line of a list: where it is, the image's path as written, its class."""

    line: int
    file: str
    number: int


class ImageList(files.FileSource):
    """A split from `root/<stem>_<split>.txt`; records in the order of the lines.

    A line is a path relative to root and, behind the last blank, the number of its class. The
    classes are those of the training list, 0 to k − 1. A class's name is the line of
    `root/classes.txt` with its number, or else the folder of its training images if every class
    has one of its own ("n01440764", "airfield"), or else "class 17". An id is the path as written.

    class_counts: training images of each class, int64 [k], whatever the split.

    Args:
        root: the folder of the lists, from which the paths start.
        split: one of `SPLITS`.
        stem: of the lists' names.

    Raises:
        InputError: with list and line: a line of another form, a label that is not a class, an image
            that is missing or listed twice; also an empty list, a class without training images.
    """

    def __init__(self, root: str | Path, split: str, *, stem: str):
        if split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        root = Path(root).expanduser()
        training = read_list(root / f"{stem}_train.txt")
        self.class_counts = _class_counts(root / f"{stem}_train.txt", training)
        path = root / f"{stem}_{split}.txt"
        rows = training if split == "train" else read_list(path)
        k = len(self.class_counts)
        for row in rows:
            if row.number >= k:
                raise InputError(
                    f"{path} line {row.line}: label {row.number}, but {stem}_train.txt has the classes 0 to {k - 1}; "
                    "take lists of one release"
                )
        _require_images(path, rows)
        super().__init__(
            root=root,
            split=split,
            paths=[row.file for row in rows],
            ids=[row.file for row in rows],
            labels=imbalance.one_hot(np.array([row.number for row in rows]), k),
            class_names=_class_names(root, training, k),
        )


def read_list(path: Path) -> list[Row]:
    """The rows of a list; empty lines are left out.

    Raises:
        InputError: no such file, not UTF-8, no image in it; with the line: not a path and a whole
            number of 0 or more, or an image that is listed twice.
    """
    way_out = "lists of `path label` lines are in data/ of the reference's repositories"
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(files.read_text(path, way_out).splitlines(), 1):
        if not line.strip():
            continue
        row = _row(path, number, line)
        first = lines.setdefault(posixpath.normpath(row.file), number)
        if first != number:
            raise InputError(
                f"{path} line {number}: {row.file!r} is already in line {first}; keep one of them"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no image in it; write one `path label` a line")
    return rows


def _row(path, number, line):
    file, _, label = line.strip().rpartition(" ")
    file = file.rstrip()
    if not file or not (label.isascii() and label.isdigit()):
        raise InputError(
            f"{path} line {number}: {line.strip()!r} is not a path, a blank and the number of a class; mend the line"
        )
    if posixpath.isabs(file):
        raise InputError(f"{path} line {number}: path {file!r}; write it relative to {path.parent}")
    return Row(number, file, int(label))


def _class_counts(path, rows):
    counts = np.bincount([row.number for row in rows])
    empty = np.flatnonzero(counts == 0)
    if empty.size:
        last = max(rows, key=lambda row: row.number)
        raise InputError(
            f"{path}: label {empty[0]} has no image, though line {last.line} has label {last.number} "
            f"({empty.size} such labels); number the classes without gaps"
        )
    return counts


def _class_names(root, training, k):
    listed = root / "classes.txt"
    if listed.is_file():
        text = files.read_text(listed, "write one class a line")
        names = [line.strip() for line in text.splitlines() if line.strip()]
        if len(names) != k or len(set(names)) != k:
            raise InputError(
                f"{listed}: {len(set(names))} different names in {len(names)} lines, wanted {k} classes; "
                "write one name a line, in the order of the labels"
            )
        return tuple(names)
    folders: list[set[str]] = [set() for _ in range(k)]
    for row in training:
        folders[row.number].add(posixpath.basename(posixpath.dirname(row.file)))
    names = [min(own) for own in folders]
    if all(len(own) == 1 for own in folders) and all(names) and len(set(names)) == k:
        return tuple(names)
    return tuple(f"class {number}" for number in range(k))


def _require_images(path, rows):
    folders = sorted({posixpath.dirname(row.file) for row in rows})
    present = {
        posixpath.join(folder, name)
        for folder in folders
        if (path.parent / folder).is_dir()
        for name in files.names_in(path.parent / folder, "unpack the images there")
    }
    missing = [row for row in rows if row.file not in present]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{path} line {missing[0].line}: no image {missing[0].file!r} in {path.parent}{more}; "
            "unpack the images there or drop the line"
        )
