"""Predictions as text: a table for people, CSV and JSON lines for programs.

Every format is a header and, image by image, its lines, so that a long run's are read as it goes.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cfmlc_jax.errors import printable
from cfmlc_jax.results.tables import FORMULA_STARTS, csv_line

# Longer file names reach into the next column rather than pushing all others to the right.
FILE_WIDTH = 100


@dataclass(frozen=True)
class Pivot:
    """The pivot patch of a class: the one with most of its evidence.

    grid: how many patches are along a side.
    column, row: in that grid, from 0, from the left and from the top.
    weight: its share in the class's evidence from patches, in (0, 1].
    box: left, top, right, bottom in pixels of the image turned upright.
    """

    grid: int
    column: int
    row: int
    weight: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A class that is listed for an image.

    effect: factual − counterfactual logit, where it was computed.
    """

    name: str
    index: int
    probability: float
    pivot: Pivot | None = None
    effect: float | None = None


@dataclass(frozen=True)
class ImageLabels:
    """An image's listed classes, the most probable first, and the file of its overlay."""

    file: str
    labels: Sequence[Label]
    overlay: str | None = None


class Format(Protocol):
    """A text format of predictions."""

    def header(self) -> str:
        """The text before all predictions; may be empty."""

    def lines(self, image: ImageLabels) -> str:
        """One image's lines, each with its line break."""


class Table:
    """A table of aligned columns, one line per listed class; a dash stands for no class.

    Args:
        files: all images, for the width of their column.
        class_names: all classes, likewise.
    """

    def __init__(self, files: Sequence[str], class_names: Sequence[str]):
        longest = max(len(printable(file)) for file in files)
        self._widths = (
            max(len("file"), min(longest, FILE_WIDTH)),
            max(len("class"), *(len(printable(name)) for name in class_names)),
        )

    def header(self):
        """The columns' names."""
        return self._line("file", "class", "probability", "pivot", "weight")

    def lines(self, image):
        """A line for every listed class, or one that says there is none."""
        if not image.labels:
            return self._line(image.file, "–", "–", "–", "–")
        return "".join(self._label(image.file, label) for label in image.labels)

    def _label(self, file, label):
        pivot = label.pivot
        place = (
            ("–", "–")
            if pivot is None
            else (
                f"column {pivot.column}, row {pivot.row} of {pivot.grid} x {pivot.grid}",
                f"{pivot.weight:.3f}",
            )
        )
        return self._line(file, label.name, f"{label.probability:.3f}", *place)

    def _line(self, file, name, probability, pivot, weight):
        of_file, of_name = self._widths
        return f"{printable(file):{of_file}}  {printable(name):{of_name}}  {probability:>11}  {pivot:15}  {weight:>6}\n"


class Csv:
    """A line for every listed class; an image without one has a line with empty fields.

    A path that a spreadsheet would run as a formula begins with "./", and a class with an apostrophe.
    """

    columns = ("file", "class", "probability", "pivot_grid", "pivot_column", "pivot_row", "pivot_weight")

    def header(self):
        """The columns' names."""
        return _csv_line(self.columns)

    def lines(self, image):
        """A line for every listed class, or one with empty fields."""
        file = image.file
        if file.startswith(FORMULA_STARTS):
            file = os.path.join(os.curdir, file)
        if not image.labels:
            return _csv_line([file, *[""] * (len(self.columns) - 1)])
        return "".join(_csv_line([file, *self._fields(label)]) for label in image.labels)

    def _fields(self, label):
        pivot = label.pivot
        place = [""] * 4 if pivot is None else [pivot.grid, pivot.column, pivot.row, _rounded(pivot.weight)]
        return [label.name, _rounded(label.probability), *place]


class Jsonl:
    """An object for every image: {"file", "labels": [{"class", "index", "probability", "pivot"}, …]}.

    "pivot" is {"grid", "column", "row", "weight", "box"}, or null without patches. A label has its "effect"
    and the image its "overlay" where there are such. ASCII: bytes of a file name that are not UTF-8
    come as lone surrogates, as Python has them.
    """

    def header(self):
        """An empty text: JSON lines have no header."""
        return ""

    def lines(self, image):
        """One line."""
        fields: dict[str, Any] = {
            "file": image.file,
            "labels": [self._fields(label) for label in image.labels],
        }
        if image.overlay is not None:
            fields["overlay"] = image.overlay
        return json.dumps(fields, allow_nan=False) + "\n"

    def _fields(self, label):
        pivot = label.pivot
        fields = {"class": label.name, "index": label.index, "probability": _rounded(label.probability)}
        fields["pivot"] = pivot and {
            "grid": pivot.grid,
            "column": pivot.column,
            "row": pivot.row,
            "weight": _rounded(pivot.weight),
            "box": [round(side, 1) for side in pivot.box],
        }
        if label.effect is not None:
            fields["effect"] = _rounded(label.effect)
        return fields


FORMATS = ("table", "jsonl", "csv")


def create(name: str, files: Sequence[str], class_names: Sequence[str]) -> Format:
    """The format by its name, one of `FORMATS`, for predictions of these files and classes."""
    if name == "table":
        return Table(files, class_names)
    return Jsonl() if name == "jsonl" else Csv()


def _csv_line(fields):
    # Bytes of a name that are not UTF-8 would make the whole file unreadable.
    return csv_line(fields).encode("utf-8", "backslashreplace").decode("utf-8")


def _rounded(value):
    """The number to seven digits, about the precision of float32."""
    return float(f"{value:.7g}")
