"""Files that are whole or not there: written under a temporary name, then renamed."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from cfmlc_jax import command


def write_text(path: Path, text: str) -> None:
    """Replace the file by UTF-8 text; a crash leaves the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file to write to, which replaces the file in the end; without an end nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    command.at_interrupt(functools.partial(temporary.unlink, missing_ok=True))
    try:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file by these bytes; whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_npz(path: Path, **arrays) -> None:
    """Replace the file by a compressed archive of arrays; whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
