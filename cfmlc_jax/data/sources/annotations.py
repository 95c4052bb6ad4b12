"""Annotations of a split as a few arrays, kept in a cache so that gigabytes of JSON are parsed once, not at every start."""

import contextlib
import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.data.sources import partial
from cfmlc_jax.data.sources.boxes import Boxes

# Part of the entries' names: raise it if what a source makes of its files changes.
VERSION = 1
# Smaller files are parsed in less than a second and are not cached.
SMALLEST = 2**24


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All that a source keeps of its annotation files.

    ids: of the n images.
    files: the n image files, relative to the root, as annotated.
    labels: uint8 [n, k], or int8 with −1 for unknown entries.
    class_names: the k classes.
    boxes: the boxes of the n images.
    """

    ids: list[str]
    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    boxes: Boxes


def cached(name: str, paths: Sequence[Path], read: Callable[[], Annotations]) -> Annotations:
    """The result of `read`, from the cache if the files are those of which it was made.

    The cache is in the user's cache folder: data sets are often shared and not writable, and what one user wrote there
    the others would have to trust. A file is the same if its path, size and time of modification are; an object, if its address, size and tag are. An entry that
    cannot be read is made anew, and a folder that cannot be written to is no error.

    Args:
        name: of data set and split, for the entry's name.
        paths: the annotation files.
        read: parses them; what it raises is not caught.
    """
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return read()  # whose error says what is missing
    if sum(stat.st_size for stat in stats) < SMALLEST:
        return read()
    # The paths as given are in error messages, such as `Boxes.left_out`.
    where = _digest([[str(path), str(path.absolute())] for path in paths])
    which = _digest([VERSION, [[stat.st_size, _version(stat)] for stat in stats]])
    entry = files.user_cache("annotations") / f"{name}-{where}-{which}.npz"
    found = _read(entry)
    if found is None:
        found = read()
        with contextlib.suppress(OSError):
            _write(entry, found)
            for older in entry.parent.glob(f"{name}-{where}-*.npz"):
                if older != entry:
                    older.unlink(missing_ok=True)
    return found


def _version(stat):
    """What changes with the content of a file or object."""
    return stat.version if hasattr(stat, "version") else stat.st_mtime_ns


def _digest(value) -> str:
    return hashlib.blake2b(json.dumps(value).encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _write(entry: Path, annotations: Annotations) -> None:
    boxes = annotations.boxes
    texts = {
        "ids": annotations.ids,
        "files": annotations.files,
        "class_names": annotations.class_names,
        "left_out": boxes.left_out,
    }
    entry.parent.mkdir(parents=True, exist_ok=True)
    files.write_npz(
        entry,
        texts=np.frombuffer(json.dumps(texts).encode(), np.uint8),
        labels=np.packbits(annotations.labels > 0, axis=1),
        unknown=np.packbits(annotations.labels < 0, axis=1),
        corners=boxes.corners,
        classes=boxes.classes,
        images=boxes.images,
        sizes=boxes.sizes,
    )


def _read(entry: Path) -> Annotations | None:
    """The entry's content; None if it does not exist or is damaged. The archive has a checksum of every array."""
    try:
        with entry.open("rb") as file:
            arrays = files.read_npz(file)
        texts = json.loads(arrays["texts"].tobytes())
        class_names = tuple(texts["class_names"])
        return Annotations(
            ids=texts["ids"],
            files=texts["files"],
            labels=_unpacked(arrays, len(class_names)),
            class_names=class_names,
            boxes=Boxes(
                corners=arrays["corners"],
                classes=arrays["classes"],
                images=arrays["images"],
                sizes=arrays["sizes"],
                left_out=texts["left_out"],
            ),
        )
    except (
        OSError,
        ValueError,
        LookupError,
        EOFError,
        TypeError,
        AttributeError,
        RecursionError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None


def _unpacked(arrays, num_classes) -> np.ndarray:
    labels = np.unpackbits(arrays["labels"], axis=1, count=num_classes)
    if "unknown" not in arrays:  # of an older version
        return labels
    unknown = np.unpackbits(arrays["unknown"], axis=1, count=num_classes).astype(bool)
    return np.where(unknown, np.int8(partial.UNKNOWN), labels.astype(np.int8)) if unknown.any() else labels
