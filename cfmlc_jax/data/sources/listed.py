"""Lines of a list of images, and checks that images are listed once and exist on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfmlc_jax.data.sources import files
from cfmlc_jax.errors import InputError


class Row(NamedTuple):
    """A line of a list.

    line: number of the line, from 1.
    written: the image's path as written in the line.
    file: that path normalised by `fields.relative_path`; the record's id.
    labels: the image's labels from the line.
    """

    line: int
    written: str
    file: str
    labels: Any


def require_unique(path: Path, rows: Sequence[Row], way_out: str) -> None:
    """Raise if an image is listed twice.

    Raises:
        InputError: an image is; the message names the first such line.
    """
    lines: dict[str, int] = {}
    for row in rows:
        first = lines.setdefault(row.file, row.line)
        if first != row.line:
            raise InputError(f"{path} line {row.line}: {row.written!r} is already in line {first}; {way_out}")


def image_paths(path: Path, rows: Sequence[Row], way_out: str) -> list[str]:
    """Paths of the rows' images relative to the list's folder, spelled as on disk.

    Raises:
        InputError: images are missing; the message names the first line and the number of the others.
    """
    on_disk = files.find_files(path.parent, (row.file for row in rows))
    missing = [row for row in rows if row.file not in on_disk]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"{path} line {missing[0].line}: no image {missing[0].written!r} in {path.parent}{more}; {way_out}"
        )
    return [on_disk[row.file] for row in rows]
