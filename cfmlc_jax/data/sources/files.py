"""Sources whose images are files in folders: the records, and the checks of what is on disk."""

import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.errors import InputError


class FileSource:
    """A split whose annotations are in memory and whose images are read when asked for: a `Source`.

    Args:
        root: the folder that the paths start from.
        split: "train" or "val".
        paths: the n image files, relative to root.
        ids: the n records' ids.
        labels: uint8 [n, k].
        class_names: the k classes.
        boxes: the boxes of the n images, where the data set has them.
    """

    def __init__(
        self,
        *,
        root: Path,
        split: str,
        paths: list[str],
        ids: list[str],
        labels: np.ndarray,
        class_names: tuple[str, ...],
        boxes: Boxes | None = None,
    ):
        self.class_names = class_names
        self.labels = labels
        self.ids = ids
        self._root = str(root)
        self._split = split
        self._paths = paths
        self._boxes = boxes

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        path = os.path.join(self._root, self._paths[index])
        record = Record(image=_read(path), labels=self.labels[index].copy(), id=self.ids[index], where=path)
        found = self.boxes_of(index)
        if found is not None:
            record["boxes"], record["box_classes"] = found
        return record

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(split={self._split!r}, images={len(self)}, classes={len(self.class_names)}, "
            f"content={fingerprint(self.class_names, self.ids, self.labels)})"
        )

    def boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Corners float32 [n, 4] and classes int32 [n] of one image; None where there are none to read."""
        return None if self._boxes is None else self._boxes.of(index)


def fingerprint(class_names: Iterable[str], ids: Iterable[str], labels: np.ndarray) -> str:
    """Eight hex digits of the classes, ids and labels, for a source's `repr`.

    A checkpoint must not resume on other annotations of the same size; paths differ between
    machines, so they stay out.
    """
    names = "\n".join([*class_names, *ids])
    return f"{zlib.crc32(np.ascontiguousarray(labels).tobytes(), zlib.crc32(names.encode())):08x}"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the image ({error.strerror}); restore the file and resume"
        ) from error


def require_split(split: str) -> None:
    """Nothing, if the split is one that every source has.

    Raises:
        InputError: a split other than "train" and "val".
    """
    if split not in ("train", "val"):
        raise InputError(f"split {split!r} does not exist; use 'train' or 'val'")


def read_text(path: Path, way_out: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: no such file (the message ends with `way_out`), or bytes that are not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {way_out}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line}: not UTF-8 text; save the file as UTF-8") from error


def read_json(path: Path, way_out: str, object_hook: Callable[[dict], Any] | None = None) -> Any:
    """The document of a JSON file; `object_hook` may shrink each object while it is parsed.

    Raises:
        InputError: no such file, not UTF-8, or broken JSON, with line and column.
    """
    text = read_text(path, way_out)
    try:
        return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno} column {error.colno}: broken JSON ({error.msg}); {way_out}"
        ) from error


def names_in(folder: Path, way_out: str) -> set[str]:
    """The names of the files in a folder, listed once: a stat for each of 80,000 images takes minutes on a network disk.

    Raises:
        InputError: there is no such folder (the message ends with `way_out`).
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; {way_out}") from error


def require_files(wanted: Iterable[str], present: Collection[str], place: Path, way_out: str) -> None:
    """Nothing, if every wanted name is present.

    Raises:
        InputError: with how many are missing, the first three of them, and `way_out`.
    """
    wanted = list(wanted)
    missing = sorted(set(wanted).difference(present))
    if missing:
        raise InputError(
            f"{place}: {len(missing)} of {len(wanted)} files are missing, first {', '.join(missing[:3])}; {way_out}"
        )
