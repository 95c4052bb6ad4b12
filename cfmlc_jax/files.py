"""Files written atomically (under a temporary name, then renamed), and checks of the paths that users give."""

import contextlib
import functools
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cfmlc_jax import cli
from cfmlc_jax.errors import InputError, WriteError

# gs://, s3://, file://; also with the one slash that `pathlib` leaves of two.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Orbax treats the folder of a save as a glob pattern when it merges the files of several processes: the
# save then lacks its index, or contains another run's arrays. TensorStore reads a backslash as a slash.
_PATTERN = "[*?\\"


CACHE_VARIABLE = "CFMLC_CACHE"


def user_cache(name: str) -> Path:
    """A folder for files that can be made or downloaded again: <name> in $CFMLC_CACHE.

    Without that variable it is cfmlc_jax/<name> in $XDG_CACHE_HOME, else in ~/.cache.
    """
    own = os.environ.get(CACHE_VARIABLE, "")
    if own:
        return Path(own).expanduser().absolute() / name
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of the variable says that relative paths are ignored.
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "cfmlc_jax" / name


def require_path(text: str, name: str) -> None:
    """Raise unless a text can be a path on this machine, whether or not it exists.

    Args:
        text: the path.
        name: how the error calls it, for example "--workdir".

    Raises:
        InputError: the text is the address of a store or a web page, or has a control character or broken
            UTF-8 in it.
    """
    if _ADDRESS.match(text):
        raise InputError(
            f"{name} {text!r} is an address, not a path on this machine; give a local or mounted folder"
        )
    character = forbidden_character(text)
    if character:
        raise InputError(
            f"{name} {text!r} has the character {character!r}, which is not allowed in a path; rename it"
        )


def forbidden_character(text: str) -> str:
    """The first control character or lone surrogate of a text; empty if there is none."""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), "")


def place(text: str | os.PathLike, name: str) -> Path:
    """The path that a user gave with "~" resolved, whether or not it exists.

    Raises:
        InputError: as `require_path`; or the text is empty, begins with the home of an unknown user, or the
            operating system refuses the path.
    """
    text = os.fspath(text)
    if not text:
        raise InputError(f"{name} is empty; give a path, or omit it")
    require_path(text, name)
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError as error:  # from `expanduser`
        raise InputError(
            f"{name} {text!r} begins with the home of an unknown user; give the full path"
        ) from error
    except OSError as error:
        shown = text if len(text) < 200 else f"{text[:100]}…"
        raise InputError(f"{name} {shown!r} cannot be used ({error.strerror}); give another path") from error
    return path


def require_savable(folder: Path, name: str) -> None:
    """Raise unless checkpoints saved in the folder can be read again.

    Raises:
        InputError: the absolute path has a character that Orbax treats as a pattern, or bytes that are not
            text.
    """
    path = str(folder.absolute())
    character = next((c for c in path if c in _PATTERN), "") or forbidden_character(path)
    if character:
        raise InputError(
            f"{name} {path!r} has {character!r} in it, so checkpoints saved there could not be read; "
            f"choose a path of printable text without any of {' '.join(_PATTERN)}"
        )


def create_folder(folder: Path, name: str) -> None:
    """Create a folder with its parents, unless it exists.

    Args:
        folder: the path.
        name: how the error calls it, for example "--out".

    Raises:
        InputError: it cannot be created, or is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{name} {folder} cannot be created ({error.strerror}); give another folder"
        ) from error


def same_path(one: str, other: str) -> bool:
    """Whether two texts name the same path; "~", links, ".." and a trailing slash are resolved."""
    return bool(one) == bool(other) and _real(one) == _real(other)


def _real(text):
    return os.path.realpath(os.path.expanduser(text))


def write_text(path: Path, text: str) -> None:
    """Replace the file by UTF-8 text; a crash leaves the old file or the new one, never a part of it.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, which replaces the file when the block ends; an exception leaves nothing.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "w", encoding="utf-8", newline="") as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file by these bytes, atomically.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "wb") as file:
        file.write(data)


def write_npz(path: Path, **arrays) -> None:
    """Replace the file by a compressed archive of arrays, atomically.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_npy(path: Path, array: np.ndarray) -> None:
    """Replace the file by one array, atomically.

    Raises:
        WriteError: the file cannot be written; the old file is unchanged.
    """
    with _replacing(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text to a file: all of it, or none if writing fails.

    Raises:
        WriteError: the text cannot be written; the file is unchanged.
    """
    rest = memoryview(text.encode())
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def _replacing(path, mode, **options) -> Iterator[Any]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    cli.at_interrupt(functools.partial(temporary.unlink, missing_ok=True))
    try:
        with temporary.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, WriteError):  # about another file, written inside the block
            raise
        raise WriteError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # the file or its folder does not exist
            temporary.unlink()
