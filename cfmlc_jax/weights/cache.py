"""The folder of downloaded weights: its place, its digests, and a lock for each file.

A file is in the cache under its name only if it is complete. Beside a file without a published digest stands its own,
NAME.sha256, as it was downloaded; `sha256sum --check` reads that too.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from cfmlc_jax import files
from cfmlc_jax.errors import InputError, WriteError

RECORD = ".sha256"
ASIDE = ".wrong-digest"
PART = ".part"
_CHUNK = 1 << 22


def folder() -> Path:
    """The folder of weights: in $CFMLC_CACHE, else in the user's cache (`files.user_cache`)."""
    return files.user_cache("weights")


def prepare(path: Path) -> None:
    """Create the folder of a file in the cache.

    Raises:
        InputError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache {path.parent} cannot be written ({error.strerror}); set ${files.CACHE_VARIABLE} to a folder"
        ) from error


@contextlib.contextmanager
def locked(path: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """A context for one process at a time that brings this file; the others wait, and say so.

    It yields whether there is a lock: some network file systems have none. The lock is the operating system's,
    and ends with its holder.

    Raises:
        WriteError: the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = lock.open("a")
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(lock)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            say(f"waiting for another process, which downloads {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def record(path: Path, digest: str) -> None:
    """Write a file's digest beside it."""
    files.write_text(path.with_name(path.name + RECORD), f"{digest}  {path.name}\n")


def recorded(path: Path) -> str:
    """The digest that was recorded beside a file; "" if there is none."""
    try:
        text = path.with_name(path.name + RECORD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    match = re.match(r"[0-9a-f]{64}\b", text)
    return match[0] if match else ""


def require_digest(path: Path, wanted: str) -> None:
    """Raise unless a file has the wanted digest; if it has another, set it aside.

    Args:
        path: of a complete file.
        wanted: hexadecimal, the first digits or all; "": any is right.

    Raises:
        InputError: the digest is another; the file is renamed, and never used.
    """
    if not wanted:
        return
    digest = sha256(path)
    if digest.startswith(wanted):
        return
    aside = set_aside(path)
    shown = digest[: len(wanted)]
    raise InputError(
        f"{path} has SHA-256 {shown}, not {wanted}: it is damaged or another file; it was renamed to {aside.name} and is "
        "not used; run the same command again to download it anew"
    )


def set_aside(path: Path) -> Path:
    """Rename a file so that nothing uses it; its new path."""
    aside, number = path.with_name(path.name + ASIDE), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}{ASIDE}.{number}")
    os.replace(path, aside)
    path.with_name(path.name + RECORD).unlink(missing_ok=True)
    return aside
