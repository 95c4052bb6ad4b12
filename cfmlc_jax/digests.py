"""Digests of the files of a folder, which tell later whether one has changed: TensorStore's arrays have no checksums."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from cfmlc_jax import files

FILE = "digests.json"


def write(folder: Path) -> None:
    """Write the digests of all files in a folder, into a file there, and of these digests.

    Raises:
        OSError: a file cannot be read, or the digests cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILE)
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
    digests[FILE] = _of_all(digests)
    files.write_text(folder / FILE, json.dumps(digests, indent=0) + "\n")


def difference(folder: Path, parts: Collection[str]) -> str:
    """What is wrong with the first file that is not as it was when `write` was called; empty if all are.

    Files that were added since then do not count. A folder without digests has no difference.

    Args:
        folder: given to `write`.
        parts: the folders in it whose files are compared.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        digests = json.loads((folder / FILE).read_bytes())
    except (
        FileNotFoundError
    ):  # of an older version, or the process was killed right after the files were written
        return ""
    except (ValueError, RecursionError):
        digests = None
    # Older versions wrote no digest of the digests.
    if not isinstance(digests, dict) or digests.pop(FILE, None) not in (None, _of_all(digests)):
        return f"{FILE} is damaged"
    for name, digest in digests.items():
        if name.partition("/")[0] in parts:
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if _digest(path) != digest:
                return f"{name} has changed since it was written"
    return ""


def _of_all(digests):
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=16).hexdigest()


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
