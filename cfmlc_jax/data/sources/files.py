"""Sources whose images are files in folders: their records, and how annotated names are found on disk."""

import json
import os
import posixpath
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.buckets import Address
from cfmlc_jax.data.sources import Record, fields
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.data.views import formats, picture_files
from cfmlc_jax.errors import BucketError, InputError

_RIGHTS = "grant permission to list it"


@runtime_checkable
class Filed(Protocol):
    """A source whose records are image files."""

    @property
    def files(self) -> list[str]:
        """The paths of the n images."""


class FileSource:
    """A `Source` with annotations in memory; each image is read when its record is requested.

    Args:
        root: the folder to which paths are relative.
        split: "train" or "val".
        paths: the n image files, relative to root.
        ids: the n records' ids.
        labels: uint8 [n, k].
        class_names: the k classes.
        boxes: the boxes of the n images, if the data set has boxes.

    Raises:
        InputError: an image of an unsupported kind, such as .heic.
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
        _require_read(root, paths)
        self.class_names = class_names
        self.labels = labels
        self.ids = ids
        self._root = str(root)
        self._split = split
        self._paths = paths
        self._boxes = None if boxes is None else _trusted(boxes, paths)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        path = os.path.join(self._root, self._paths[index])
        return Record(image=_read(path), labels=self.labels[index].copy(), id=self.ids[index], where=path)

    @property
    def files(self) -> list[str]:
        """The paths of the n images."""
        return [os.path.join(self._root, path) for path in self._paths]

    def boxes(self) -> Boxes | None:
        """The boxes of its images; None if the data set has none."""
        return self._boxes

    @property
    def left_out(self) -> str:
        """A line about unusable boxes among those in memory; "" if there are none."""
        return "" if self._boxes is None else self._boxes.left_out

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(split={self._split!r}, images={len(self)}, classes={len(self.class_names)}, "
            f"content={fingerprint(self.class_names, self.ids, self.labels)})"
        )

    def pictures(self) -> list[str]:
        """The n image files with links resolved, so that the same image has the same name in every source."""
        if isinstance(files.path_of(self._root), Address):  # a bucket has no links
            return [os.path.join(self._root, path) for path in self._paths]
        folders: dict[str, tuple[str, set[str]]] = {}
        resolved = []
        for path in self._paths:
            folder, name = posixpath.split(path)
            if folder not in folders:
                place = os.path.join(self._root, folder)
                folders[folder] = os.path.realpath(place), _links(place)
            place, links = folders[folder]
            file = os.path.join(place, name)
            resolved.append(os.path.realpath(file) if name in links else file)
        return resolved


def _links(folder: str) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_symlink()}


def _trusted(boxes: Boxes, paths: list[str]) -> Boxes:
    """The boxes with unknown sizes (0) for TIFF images, because these may be turned by their metadata."""
    is_tiff = [path.lower().endswith((".tif", ".tiff")) for path in paths]
    return replace(boxes, sizes=np.where(np.array(is_tiff)[:, None], 0, boxes.sizes))


def fingerprint(class_names: Iterable[str], ids: Iterable[str], labels: np.ndarray) -> str:
    """A checksum of classes, ids and labels, eight hex digits, for a source's `repr`.

    A checkpoint must not resume on other annotations of the same size. Paths are not included, because
    they differ between machines.
    """
    names = "\n".join([*class_names, *ids])
    return f"{zlib.crc32(np.ascontiguousarray(labels).tobytes(), zlib.crc32(names.encode())):08x}"


def _read(path: str, size: int = -1) -> bytes:
    try:
        return picture_files.read_anywhere(path) if size < 0 else files.read_bytes(path, size)
    except BucketError:
        raise  # no image can be read
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the image ({error.strerror}); restore the file and resume"
        ) from error


def _require_read(root, paths):
    suspicious = [path for path in paths if path.lower().endswith(formats.UNREAD_SUFFIXES)]
    for path in suspicious:
        refusal = formats.refusal(path, _read(os.path.join(root, path), formats.HEAD_BYTES))
        if refusal is not None:
            like_it = f" ({len(suspicious) - 1} more have such names)" if len(suspicious) > 1 else ""
            raise InputError(f"{root / path}: {refusal}{like_it}")


def require_split(split: str) -> None:
    """Raise unless the split is "train" or "val".

    Raises:
        InputError: it is another split.
    """
    if split not in ("train", "val"):
        raise InputError(f"split {split!r} does not exist; use 'train' or 'val'")


def read_text(path: Path, way_out: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: the file does not exist (the message ends with `way_out`) or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {way_out}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line}: not UTF-8 text; save the file as UTF-8") from error


def read_json(
    path: Path,
    way_out: str,
    object_hook: Callable[[dict], Any] | None = None,
    object_pairs_hook: Callable[[list], Any] | None = None,
) -> Any:
    """The content of a JSON file; a hook may change each object while it is parsed.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has broken JSON (with line and column).
    """
    text = read_text(path, way_out)
    try:
        return json.loads(text, object_hook=object_hook, object_pairs_hook=object_pairs_hook)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno} column {error.colno}: broken JSON ({error.msg}); {way_out}"
        ) from error
    except InputError:
        raise
    # A number of more than 4300 digits, or thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {way_out}") from error


def read_class_list(path: Path, way_out: str) -> list[str]:
    """The lines of a list of classes, normalised by `fields.as_class_name`, without empty lines.

    Raises:
        InputError: the file does not exist, is not UTF-8, or has a line that is no class name.
    """
    lines = read_text(path, way_out).splitlines()
    return [fields.as_class_name(line, f"{path} line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def find_files(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path -> its spelling on disk, for those of the paths that exist as files under the root.

    Accents may be decomposed on disk, as macOS writes them. Each folder is listed once, because a stat
    for each of 80,000 images takes minutes on a network disk.

    Args:
        root: the folder to which the paths are relative.
        paths: paths normalised by `fields.relative_path`.
    """
    listings: dict[str, dict[str, str]] = {}
    on_disk = {}
    for path in paths:
        folder, name = posixpath.split(path)
        if folder not in listings:
            listings[folder] = _listing(root, folder)
        if name in listings[folder]:
            on_disk[path] = listings[folder][name]
    return on_disk


def _listing(root: Path, folder: str) -> dict[str, str]:
    """Composed names of a folder's files -> their paths relative to the root; empty without such a folder."""
    place = _spelled(root, folder)
    if place is None:
        return {}
    names = _composed(names_in(root / place, _RIGHTS))
    return {name: posixpath.join(place, spelled) for name, spelled in names.items()}


def _spelled(root: Path, folder: str) -> str | None:
    """A folder's path as spelled on disk; None if the folder does not exist."""
    if (root / folder).is_dir():
        return folder
    place = ""
    for name in folder.split("/") if root.is_dir() else ():
        folders = _composed(names_in(root / place, _RIGHTS, folders=True))
        if name not in folders:
            return None
        place = posixpath.join(place, folders[name])
    return place or None


def _composed(names: set[str]) -> dict[str, str]:
    """Composed form -> name; if two names have the same form, the composed name is kept."""
    ordered = sorted(names, key=lambda name: (unicodedata.is_normalized("NFC", name), name))
    return {fields.composed(name): name for name in ordered}


def require_own_files(ids: Iterable[str], paths: Iterable[str], where: str) -> None:
    """Raise unless every image has its own file.

    Raises:
        InputError: two images share a file; the message has their ids.
    """
    owners: dict[str, str] = {}
    for key, path in zip(ids, paths):
        first = owners.setdefault(path, key)
        if first != key:
            raise InputError(
                f"{where}: the images {first} and {key} are the same file, {path}; give it one id"
            )


def names_in(folder: Path, way_out: str, *, folders: bool = False) -> set[str]:
    """The names of a folder's files and links, or of its folders.

    A link is not followed to see what it is, because that is a stat for each of them.

    Raises:
        InputError: the folder does not exist (the message ends with `way_out`).
    """
    try:
        if isinstance(folder, Address):
            return {name for name, is_folder in folder.entries().items() if is_folder == folders}
        with os.scandir(folder) as entries:
            if folders:
                return {entry.name for entry in entries if entry.is_dir()}
            return {entry.name for entry in entries if entry.is_symlink() or entry.is_file()}
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror}; {way_out}") from error


def require_files(wanted: Iterable[str], present: Collection[str], place: Path, way_out: str) -> None:
    """Raise unless every wanted name is present.

    Raises:
        InputError: names are missing; the message has their number, the first three, and `way_out`.
    """
    wanted = list(wanted)
    missing = sorted(set(wanted).difference(present))
    if missing:
        raise InputError(
            f"{place}: {len(missing)} of {len(wanted)} files are missing, first {', '.join(missing[:3])}; {way_out}"
        )
