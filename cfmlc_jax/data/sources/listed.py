"""Lines of a list of images: each image once, and all of them on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfmlc_jax.data.sources import files
from cfmlc_jax.errors import InputError


class Row(NamedTuple):
    """A line of a list.

    line: its number, from 1.
    written: the image's path as the line has it.
    file: that path as `fields.relative_path` gives it; the record's id.
    labels: what the line says of the image.
    """

    line: int
    written: str
    file: str
    labels: Any


def require_unique(path: Path, rows: Sequence[Row], way_out: str) -> None:
    """Nothing, if every image has one line.

    Raises:
        InputError: with the first line whose image an earlier line has.
    """
    lines: dict[str, int] = {}
    for row in rows:
        first = lines.setdefault(row.file, row.line)
        if first != row.line:
            raise InputError(f"{path} line {row.line}: {row.written!r} is already in line {first}; {way_out}")


def paths_of(path: Path, rows: Sequence[Row], way_out: str) -> list[str]:
    """The rows' images as the disk spells them, relative to the list's folder.

    Raises:
        InputError: with the first line whose image is missing, and how many more are.
    """
    found = files.find_files(path.parent, (row.file for row in rows))
    missing = [row for row in rows if row.file not in found]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{path} line {missing[0].line}: no image {missing[0].written!r} in {path.parent}{more}; {way_out}"
        )
    return [found[row.file] for row in rows]
