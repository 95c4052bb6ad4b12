"""Your own images: one CSV file per split, with lines `file,label;-label;?label`."""

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import fields, files, listed, partial
from cfmlc_jax.data.sources.listed import Row
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

WAY_OUT = "write one line per image: file,label;label (UTF-8, paths relative to the table's folder)"
# Separators between path and labels, in the order in which they are tried.
SEPARATORS = (",", "\t", ";")
# Before the name of a class: the label of an image that lacks it, and of one of which that is unknown.
SIGNS = {"-": 0, "?": partial.UNKNOWN}
_HEADERS = (["file", "labels"], ["file", "label"])


class Table(files.FileSource):
    """A split from `root/train.csv` or `root/val.csv`, with records in the order of the lines.

    A line is `file,label;label`: a path relative to root, and the image's classes. An image without
    classes has an empty second field (`file,`). `-label` is a class that the image is known to lack, `?label` one of
    which nothing is known; a class that is not mentioned is absent, or unknown by `unmentioned`. (A class whose name
    begins with one of the signs must be listed in `classes` or classes.txt.) Fields may be quoted. A first line `file,labels` is a
    header. Empty lines and blanks around a label are ignored. An id is the path (`fields.relative_path`).

    If not every line has a comma but every line has a tab, or else a semicolon, that separates
    the fields (`file;label`, `file;"label;label"`). Further fields are labels too
    (`file;label;label`), and empty fields at the end are ignored. Spreadsheets write such tables.

    The classes are `classes` if given, else the lines of `root/classes.txt` if that file exists,
    else the sorted labels of `train.csv` without a sign. They are the same for both splits, so that columns agree.

    Args:
        root: the folder of the tables.
        split: "train" or "val".
        classes: the class names in label order.
        unmentioned: a name of `partial.UNMENTIONED`, what a class is that a line does not mention.

    Raises:
        InputError: a line of another form, a label outside the classes, labels that contradict each other, an image
            of which nothing is known, that is missing or listed twice (with table and line); an empty table, or a
            class listed twice.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        classes: Sequence[str] | None = None,
        unmentioned: str = "absent",
    ):
        files.require_split(split)
        root = path_of(root)
        path = root / f"{split}.csv"
        rows = read_table(path)
        if not rows:
            raise InputError(f"{path}: no image in it; {WAY_OUT}")
        class_names, origin = class_list(root, classes)
        listed.require_unique(path, rows, "give its labels in one line")
        labels = _labels(path, rows, class_names, origin, unmentioned)
        super().__init__(
            root=root,
            split=split,
            paths=listed.image_paths(path, rows, "add the file or remove the line"),
            ids=[row.file for row in rows],
            labels=labels,
            class_names=class_names,
        )


def read_table(path: Path) -> list[Row]:
    """The rows of a table, without header and empty lines.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has a line without two fields (with the line).
    """
    text = files.read_text(path, WAY_OUT)
    separator = _separator(text)
    reader = _reader(text, separator)
    rows: list[Row] = []
    try:
        for number, columns in enumerate(reader):
            is_header = number == 0 and [column.strip().lower() for column in columns] in _HEADERS
            if columns and not is_header:
                rows.append(_row(f"{path} line {reader.line_num}", reader.line_num, columns, separator))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num}: broken CSV ({error}); {WAY_OUT}") from error
    return rows


def _reader(text, separator):
    return csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)


def _separator(text: str) -> str:
    """The first of `SEPARATORS` that every line contains outside quotes; the comma if there is none."""
    for separator in SEPARATORS:
        try:
            if all(len(columns) != 1 for columns in _reader(text, separator)):
                return separator
        except csv.Error:
            continue
    return SEPARATORS[0]


def _row(where: str, line: int, columns: list[str], separator: str) -> Row:
    if len(columns) == 1:
        is_other = any(other in columns[0] for other in SEPARATORS)
        way_out = "put a comma after the path" if is_other else "end the line with a comma if it has no class"
        raise InputError(f"{where}: {columns[0]!r} has no label field; {way_out}")
    if len(columns) > 2 and separator == ",":
        raise InputError(
            f"{where}: {len(columns)} fields, wanted 2; separate labels by ';', and quote a path that has a comma"
        )
    written, *rest = columns
    field = ";".join(rest)
    if separator != ",":
        field = field.rstrip("; \t")
    labels = tuple(label.strip() for label in field.split(";")) if field.strip() else ()
    if not all(labels):
        raise InputError(f"{where}: an empty label in {field!r}; separate labels by one ';'")
    file = fields.relative_path(written, where)
    return Row(line, written, file, tuple(fields.as_class_name(label, where) for label in labels))


def class_list(root: Path, classes: Sequence[str] | None = None) -> tuple[tuple[str, ...], str]:
    """Class names [k] of the tables in a folder, and the name of their origin for messages.

    Raises:
        InputError: there is no class, or one twice.
    """
    if classes is not None:
        names, origin = list(classes), "the given classes"
    elif (root / "classes.txt").is_file():
        names, origin = files.read_class_list(root / "classes.txt", "write one class per line"), "classes.txt"
    else:
        rows = read_table(root / "train.csv")
        names, origin = (
            sorted({label for row in rows for label in row.labels if label[0] not in SIGNS}),
            "train.csv",
        )
    if not names:
        raise InputError(f"{origin} in {root}: no classes; label the images or list the classes")
    return fields.class_names(names, f"{origin} in {root}"), origin


def _labels(path, rows: list[Row], class_names: tuple[str, ...], origin: str, unmentioned: str) -> np.ndarray:
    """The labels [n, k] of the rows, as a source has them."""
    column_of = {name: column for column, name in enumerate(class_names)}
    labels = [row_labels(path, row, column_of, origin, unmentioned) for row in rows]
    return partial.compact(np.stack(labels))


def row_labels(
    path: Path, row: Row, column_of: Mapping[str, int], origin: str, unmentioned: str
) -> np.ndarray:
    """The labels of a row: int8 [k] of 1, 0 and −1.

    Args:
        path: the table, for messages.
        row: the row.
        column_of: class name -> column, in label order.
        origin: of the class names, for messages.
        unmentioned: a name of `partial.UNMENTIONED`.

    Raises:
        InputError: a label outside the classes, labels that contradict each other, or no known label.
    """
    where = f"{path} line {row.line}"
    labels = np.full(len(column_of), partial.unmentioned_label(unmentioned), np.int8)
    mentioned: dict[str, tuple[int, str]] = {}
    for written in row.labels:
        name, value = _signed(where, written, column_of)
        if name not in column_of:
            raise InputError(f"{where}: {_unknown_class(written, name, column_of, origin)}")
        first, earlier = mentioned.setdefault(name, (value, written))
        if first != value:
            raise InputError(f"{where}: {earlier!r} and {written!r} contradict each other; keep one of them")
        labels[column_of[name]] = value
    if (labels < 0).all():
        raise InputError(
            f"{where}: nothing is known of {row.written!r}; name a class that it has or, as -name, lacks, or remove the line"
        )
    return labels


def _signed(where: str, written: str, column_of) -> tuple[str, int]:
    """The class of a label as written, and the label: 1, 0 or −1."""
    if written in column_of or written[0] not in SIGNS:
        return written, 1
    return fields.as_class_name(written[1:], where), SIGNS[written[0]]


def _unknown_class(written, name, column_of, origin):
    near = difflib.get_close_matches(name, column_of, n=1)
    hint = f"did you mean {near[0]!r}? else " if near else ""
    if written == name or origin != "train.csv":
        signed = "" if written == name else f" (class {name!r})"
        return f"label {written!r}{signed} is not in {origin}; {hint}add it to the classes"
    # Without classes.txt, labels with a sign make no class.
    return f"label {written!r}: no image in train.csv has {name!r}; {hint}write the classes into classes.txt, one a line"
