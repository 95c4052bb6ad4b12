"""Files that are whole or not there: written under a temporary name, then renamed. Paths that users give."""

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
# Orbax takes the folder of a save for a pattern when it merges what processes wrote: the save is
# without its index then, or has another run's arrays. TensorStore takes a backslash for a slash.
_PATTERN = "[*?\\"


def require_path(text: str, name: str) -> None:
    """Raise unless a text can be a path of this machine, there or not.

    Args:
        text: the path.
        name: what it is called in the error, "--workdir" say.

    Raises:
        InputError: an address of a store or a web page, or a control character or broken UTF-8 in it.
    """
    if _ADDRESS.match(text):
        raise InputError(
            f"{name} {text!r} is an address, not a path of this machine; give a local or mounted folder"
        )
    odd = strange(text)
    if odd:
        raise InputError(f"{name} {text!r} has the character {odd!r}, which no path may have here; rename it")


def strange(text: str) -> str:
    """The first control character, or half of a character, of a text; empty without any."""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), "")


def place(text: str | os.PathLike, name: str) -> Path:
    """The path that a user gave, "~" resolved, there or not.

    Raises:
        InputError: as `require_path`; an empty text, an unknown user's home, or a path that the
            operating system refuses.
    """
    text = os.fspath(text)
    if not text:
        raise InputError(f"{name} is empty; give a path, or leave it out")
    require_path(text, name)
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError as error:  # of `expanduser`
        raise InputError(f"{name} {text!r} begins with an unknown user's home; give it in full") from error
    except OSError as error:
        shown = text if len(text) < 200 else f"{text[:100]}…"
        raise InputError(f"{name} {shown!r} cannot be used ({error.strerror}); give another path") from error
    return path


def require_savable(folder: Path, name: str) -> None:
    """Raise unless checkpoints that are saved in the folder can be read again.

    Raises:
        InputError: a character in its absolute path that Orbax takes for a pattern, or bytes that are
            no text.
    """
    path = str(folder.absolute())
    odd = next((c for c in path if c in _PATTERN), "") or strange(path)
    if odd:
        raise InputError(
            f"{name} {path!r} has {odd!r} in it, and checkpoints saved there could not be read; "
            f"take a path of text, without any of {' '.join(_PATTERN)}"
        )


def same_path(one: str, other: str) -> bool:
    """Whether two texts are one path: relative or absolute, through "~", links or "..", with a slash at the end."""
    return bool(one) == bool(other) and _real(one) == _real(other)


def _real(text):
    return os.path.realpath(os.path.expanduser(text))


def write_text(path: Path, text: str) -> None:
    """Replace the file by UTF-8 text; a crash leaves the old file or the new one, never a part.

    Raises:
        WriteError: the old file is as it was.
    """
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, which replaces the file in the end; without an end nothing is left.

    Raises:
        WriteError: the old file is as it was.
    """
    with _replacing(path, "w", encoding="utf-8", newline="") as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file by these bytes; whole or not at all.

    Raises:
        WriteError: the old file is as it was.
    """
    with _replacing(path, "wb") as file:
        file.write(data)


def write_npz(path: Path, **arrays) -> None:
    """Replace the file by a compressed archive of arrays; whole or not at all.

    Raises:
        WriteError: the old file is as it was.
    """
    with _replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to the end of a file; what was there stays whole, and no part of the text is left behind it.

    Raises:
        WriteError: the text is not there.
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
        if isinstance(error, WriteError):  # of another file, written meanwhile
            raise
        raise WriteError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there, or its folder is not
            temporary.unlink()
