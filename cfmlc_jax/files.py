"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cfmlc_jax.errors import WriteError


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
