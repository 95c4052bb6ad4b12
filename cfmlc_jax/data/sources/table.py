"""Your own images: one CSV file per split, `file,label;label`."""

import csv
import difflib
import io
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.data.sources import files
from cfmlc_jax.errors import InputError

WAY_OUT = "write one line per image: file,label;label (UTF-8, paths relative to the table's folder)"
_HEADERS = (["file", "labels"], ["file", "label"])


class Row(NamedTuple):
    """A line of a table: where it is, the file as written, its labels (none: an image without classes)."""

    line: int
    file: str
    labels: tuple[str, ...]


class Table(files.FileSource):
    """A split from `root/train.csv` or `root/val.csv`; records in the order of the lines.

    A line is `file,label;label`: a path relative to root and the image's classes, none of them
    for an image without any (`file,`). Fields may be quoted, a first line `file,labels` is a
    header, empty lines are skipped, and blanks around a label do not count. An id is the path
    as written.

    The classes are `classes` if given, else the lines of `root/classes.txt` if there is such a
    file, else the labels of `train.csv`, sorted: for both splits, so that their columns agree.

    Args:
        root: the folder of the tables.
        split: "train" or "val".
        classes: the class names in label order.

    Raises:
        InputError: with table and line: a line of another form, a label outside the classes, an
            image that is missing or listed twice; also an empty table, or classes listed twice.
    """

    def __init__(self, root: str | Path, split: str, *, classes: Sequence[str] | None = None):
        files.require_split(split)
        root = Path(root).expanduser()
        path = root / f"{split}.csv"
        rows = read_table(path)
        if not rows:
            raise InputError(f"{path}: no image in it; {WAY_OUT}")
        class_names, origin = _classes(root, classes)
        _require_unique(path, rows)
        labels = _multi_hot(path, rows, class_names, origin)
        _require_images(path, rows)
        super().__init__(
            root=root,
            split=split,
            paths=[row.file for row in rows],
            ids=[row.file for row in rows],
            labels=labels,
            class_names=class_names,
        )


def read_table(path: Path) -> list[Row]:
    """The rows of a table, header and empty lines left out.

    Raises:
        InputError: no such file, not UTF-8, or a line that is not two fields; with the line.
    """
    text = files.read_text(path, WAY_OUT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        for number, fields in enumerate(reader):
            is_header = number == 0 and [field.strip().lower() for field in fields] in _HEADERS
            if fields and not is_header:
                rows.append(_row(path, reader.line_num, fields))
    except csv.Error as error:
        raise InputError(f"{path.name} line {reader.line_num}: broken CSV ({error}); {WAY_OUT}") from error
    return rows


def _row(path: Path, line: int, fields: list[str]) -> Row:
    where = f"{path.name} line {line}"
    if len(fields) == 1:
        raise InputError(
            f"{where}: {fields[0]!r} has no label field; end the line with a comma if it has no class"
        )
    if len(fields) > 2:
        raise InputError(
            f"{where}: {len(fields)} fields, wanted 2; separate labels by ';', quote a path that has a comma"
        )
    file, field = fields
    if not file or posixpath.isabs(file):
        raise InputError(f"{where}: path {file!r}; write it relative to the folder of {path.name}")
    labels = tuple(label.strip() for label in field.split(";")) if field.strip() else ()
    if not all(labels):
        raise InputError(f"{where}: an empty label in {field!r}; separate labels by one ';'")
    return Row(line, file, labels)


def _classes(root: Path, classes: Sequence[str] | None) -> tuple[tuple[str, ...], str]:
    """Class names [k], and what to call the place that they come from."""
    if classes is not None:
        names, origin = tuple(classes), "the given classes"
    elif (root / "classes.txt").is_file():
        lines = files.read_text(root / "classes.txt", "write one class a line").splitlines()
        names, origin = tuple(line.strip() for line in lines if line.strip()), "classes.txt"
    else:
        rows = read_table(root / "train.csv")
        names, origin = tuple(sorted({label for row in rows for label in row.labels})), "train.csv"
    if not names:
        raise InputError(f"{origin} in {root}: no class at all; label the images or name the classes")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{origin} in {root}: class {twice[0]!r} is listed twice; list it once")
    return names, origin


def _require_unique(path: Path, rows: list[Row]) -> None:
    lines: dict[str, int] = {}
    for row in rows:
        first = lines.setdefault(posixpath.normpath(row.file), row.line)
        if first != row.line:
            raise InputError(
                f"{path.name} line {row.line}: {row.file!r} is already in line {first}; give its labels in one line"
            )


def _multi_hot(path: Path, rows: list[Row], class_names: tuple[str, ...], origin: str) -> np.ndarray:
    column_of = {name: column for column, name in enumerate(class_names)}
    labels = np.zeros((len(rows), len(class_names)), np.uint8)
    for index, row in enumerate(rows):
        for label in row.labels:
            if label not in column_of:
                near = difflib.get_close_matches(label, class_names, n=1)
                hint = f"did you mean {near[0]!r}? else " if near else ""
                raise InputError(
                    f"{path.name} line {row.line}: label {label!r} is not in {origin}; {hint}add it to the classes"
                )
            labels[index, column_of[label]] = 1
    return labels


def _require_images(path: Path, rows: list[Row]) -> None:
    folders = sorted({posixpath.dirname(row.file) for row in rows})
    present = {
        posixpath.join(folder, name)
        for folder in folders
        if (path.parent / folder).is_dir()
        for name in files.names_in(path.parent / folder, WAY_OUT)
    }
    missing = [row for row in rows if row.file not in present]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{path.name} line {missing[0].line}: no image {missing[0].file!r} in {path.parent}{more}; "
            "add the file or drop the line"
        )
