"""Open Images in its official layout: image-level labels that people verified, present or absent; the others unknown."""

import collections
import csv
from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import annotations, available, boxes, fields, files, partial
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

# Split -> the official name of its folder, and the names in the annotation files of versions 4 to 7.
SPLITS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}
LABELS = "{prefix}{split}-annotations-human-imagelabels{kind}.csv"
DESCRIPTIONS = "{prefix}class-descriptions{kind}.csv"
PREFIXES, KINDS = ("", "oidv7-", "oidv6-"), ("-boxable", "")
CLASS_LIST = "classes.txt"
WAY_OUT = (
    "get the human-verified image-level labels and the class names (python -m cfmlc_jax.data open_images)"
)
_HEADER = ["ImageID", "Source", "LabelName", "Confidence"]


class OpenImages(files.FileSource):
    """A split from `root/<split>-annotations-human-imagelabels-boxable.csv` and the images of `root/<split>/`.

    The official names of versions 4 to 7 are known; of several files the boxable one is taken. A line with the
    confidence 1 is a class that people saw in the image, one with 0 a class that they looked for in vain. If people
    disagree, the class is unknown. Classes are in the order of class-descriptions-boxable.csv, named by their display
    name (and their code, where two have one name); `root/classes.txt` may choose some, a name or code a line.

    Images that are not in the folder, and images of which nothing is known, are left out and counted (`left_out`).

    Args:
        root: the folder that contains these.
        split: one of `SPLITS`.
        unmentioned: a name of `partial.UNMENTIONED`, what a class is of which people were not asked.

    Raises:
        InputError: missing or broken files, a confidence that is neither 0 nor 1, no image.
    """

    def __init__(self, root: str | Path, split: str, *, unmentioned: str = "unknown"):
        if split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        root, folder = path_of(root), SPLITS[split][0]
        table = _official(root, LABELS, SPLITS[split])
        described = _official(root, DESCRIPTIONS, ("",))
        listed = root / CLASS_LIST
        kept = annotations.cached(
            f"open_images_{split}_{unmentioned}",
            [table, described, *([listed] if listed.is_file() else [])],
            lambda: _read(table, _classes(described, listed), folder, unmentioned),
        )
        known = np.flatnonzero((kept.labels >= 0).any(axis=1))
        names = [kept.files[row] for row in known]
        if not names:
            raise InputError(f"{table}: no image has one of the {len(kept.class_names)} classes; {WAY_OUT}")
        found = available.on_disk(root, names, folder, f"unpack the images into {folder}/, as <ImageID>.jpg")
        rows = known[found.rows]
        super().__init__(
            root=root,
            split=split,
            paths=found.paths,
            ids=[kept.ids[row] for row in rows],
            labels=partial.compact(kept.labels[rows]),
            class_names=kept.class_names,
        )
        self._left_out = found.left_out

    @property
    def left_out(self) -> str:
        """A line about the images that are not on disk; "" if all are."""
        return self._left_out


def _official(root: Path, form: str, splits) -> Path:
    """The first official file that exists, else the first name."""
    places = [
        root / form.format(prefix=prefix, split=split, kind=kind)
        for kind in KINDS
        for prefix in PREFIXES
        for split in splits
    ]
    return next((place for place in places if place.is_file()), places[0])


def _classes(described: Path, listed: Path) -> dict[str, str]:
    """Code -> name of the classes in label order."""
    try:
        rows = [
            row
            for row in csv.reader(files.read_text(described, WAY_OUT).splitlines())
            if row and row[0] != "LabelName"
        ]
    except csv.Error as error:
        raise InputError(f"{described}: not a table of codes and names ({error}); {WAY_OUT}") from error
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise InputError(f"{described}: {','.join(wrong)!r} is not a code and a name; {WAY_OUT}")
    display = {code: fields.as_class_name(name, str(described)) for code, name in rows}
    several = {name for name, codes in collections.Counter(display.values()).items() if codes > 1}
    names = {code: f"{name} ({code})" if name in several else name for code, name in display.items()}
    if not listed.is_file():
        return names
    code_of = {name: code for code, name in names.items()} | {code: code for code in names}
    chosen = files.read_class_list(listed, "write one class per line")
    unknown = next((name for name in chosen if name not in code_of), None)
    if unknown is not None:
        raise InputError(
            f"{listed}: class {unknown!r} is not in {described.name}; write a display name or a code"
        )
    return {code_of[name]: names[code_of[name]] for name in chosen}


def _read(table: Path, classes: dict[str, str], folder: str, unmentioned: str) -> annotations.Annotations:
    """The labels of all images of a table."""
    column_of = {code: column for column, code in enumerate(classes)}
    row_of: dict[str, int] = {}
    places: list[tuple[int, int, int]] = []
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            if next(reader, None) != _HEADER:
                raise InputError(f"{table} line 1: not the header {','.join(_HEADER)}; {WAY_OUT}")
            for line in reader:
                image, code, label = _line(table, reader.line_num, line)
                row = row_of.setdefault(image, len(row_of))
                if code in column_of:
                    places.append((row, column_of[code], label))
    except OSError as error:
        raise InputError(f"{table}: {error.strerror}; {WAY_OUT}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a table of labels ({error}); {WAY_OUT}") from error
    labels = np.full((len(row_of), len(classes)), partial.unmentioned_label(unmentioned), np.int8)
    rows, columns, given = np.array(places, np.int64).reshape(-1, 3).T
    labels[rows, columns] = given
    # A label that another line contradicts differs from what the last line wrote.
    contradicted = labels[rows, columns] != given
    labels[rows[contradicted], columns[contradicted]] = partial.UNKNOWN
    ids = list(row_of)
    return annotations.Annotations(
        ids=ids,
        files=[
            fields.relative_path(f"{key}.jpg", f"{table}: image {fields.shown(key)}", folder) for key in ids
        ],
        labels=partial.compact(labels),
        class_names=fields.class_names(classes.values(), str(table.parent)),
        boxes=boxes.from_annotations([], [], [], [None] * len(ids)),
    )


def _line(table: Path, number: int, columns: list[str]) -> tuple[str, str, int]:
    """Image, code and label of a line."""
    if len(columns) != len(_HEADER):
        raise InputError(f"{table} line {number}: {len(columns)} fields, wanted {len(_HEADER)}; {WAY_OUT}")
    image, _, code, confidence = columns
    if confidence in ("0", "1"):
        return image, code, int(confidence)
    try:
        value = float(confidence)
    except ValueError:
        value = -1.0
    if value not in (0.0, 1.0):
        raise InputError(
            f"{table} line {number}: confidence {confidence!r} is neither 0 nor 1, so a machine gave it; {WAY_OUT}"
        )
    return image, code, int(value)
