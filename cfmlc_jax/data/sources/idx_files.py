"""The official files of MNIST, in idx form: handwritten digits with their labels, packed (gz) or not.

A file of another kind or size, or one that is cut off, is an error.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.errors import InputError

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SIDE = 28  # pixels
# Number of images of each part.
PARTS = {"train": 60_000, "t10k": 10_000}
UNSIGNED_BYTES = 8  # idx code of the type of the values
_KINDS = {1: "labels", 3: "images"}  # by number of dimensions


class File(NamedTuple):
    """A packed official file, with its size in bytes and its MD5."""

    name: str
    size: int
    md5: str


# Sizes as downloaded from URL; MD5 from torchvision.
FILES = (
    File("train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    File("train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432"),
    File("t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3"),
    File("t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c"),
)


class Digits(NamedTuple):
    """Handwritings: ink uint8 [n, 28, 28], 255 for full ink, and the digit of each, int64 [n]."""

    ink: np.ndarray
    classes: np.ndarray


def read(root: Path, part: str) -> Digits:
    """All digits of a part, "train" or "t10k", in the order of the files.

    Args:
        root: folder of `<part>-images-idx3-ubyte` and `<part>-labels-idx1-ubyte`, with or without `.gz`;
            unpacked files are preferred.
        part: one of `PARTS`.

    Raises:
        InputError: a file is missing, damaged, cut off or not the official kind; another number of images
            than of labels, or than the official one; a label above 9; a digit that no label has.
    """
    names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
    ink, classes = (_values(root, name, dims) for name, dims in zip(names, (3, 1), strict=True))
    if ink.shape[1:] != (SIDE, SIDE):
        height, width = ink.shape[1:]
        raise InputError(f"{root / names[0]}: images of {height} × {width} pixels, wanted {SIDE} × {SIDE}; "
                         f"{_way_out(root, names[0])}")  # fmt: skip
    if len(ink) != len(classes):
        raise InputError(
            f"{root}: {len(ink):,} images in {names[0]} and {len(classes):,} labels in {names[1]}; "
            f"download both again from {URL}"
        )
    require_digits(classes, str(root / names[1]), _way_out(root, names[1]))
    if len(ink) != PARTS[part]:
        raise InputError(
            f"{root / names[0]}: {len(ink):,} images, wanted {PARTS[part]:,}; {_way_out(root, names[0])}"
        )
    return Digits(ink, classes.astype(np.int64))


def require_digits(classes: np.ndarray, where: str, way_out: str) -> None:
    """Raise unless the labels are 0 to 9 and each of them occurs.

    Raises:
        InputError: the message names the first label above 9, or the digits that are missing.
    """
    above = np.flatnonzero((classes < 0) | (classes > 9))
    if above.size:
        raise InputError(f"{where}: label {above[0]} is {classes[above[0]]}, wanted 0 to 9; {way_out}")
    missing = sorted(set(range(10)) - set(np.unique(classes).tolist()))
    if missing:
        digits = ", ".join(map(str, missing))
        raise InputError(f"{where}: no label is {digits}; training needs all ten digits; {way_out}")


def _way_out(root, name):
    return f"download {URL}{name}.gz into {root}; it may stay packed"


def _values(root, name, dims) -> np.ndarray:
    """The uint8 array of a file, which must have `dims` dimensions."""
    unpacked, packed = root / name, root / f"{name}.gz"
    path = unpacked if unpacked.is_file() else packed
    way_out = _way_out(root, name)
    try:
        with path.open("rb") if path == unpacked else gzip.open(path) as file:
            shape = _shape(file.read(4 + 4 * dims), dims, path, way_out)
            wanted = math.prod(shape)
            # No more is read than the header promises, which is at most the official size.
            data = file.read(wanted + 1)
    except FileNotFoundError as error:
        raise InputError(f"neither {unpacked} nor {packed.name} exists; {way_out}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be unpacked ({error}); {way_out}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {way_out}") from error
    if len(data) != wanted:
        state = f"cut off after {len(data):,} of" if len(data) < wanted else "longer than"
        raise InputError(f"{path} is {state} the {wanted:,} bytes that its header promises; {way_out}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _shape(header, dims, path, way_out) -> tuple[int, ...]:
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != UNSIGNED_BYTES:
        raise InputError(
            f"{path} is no idx file of bytes (it begins with {header[:4].hex() or 'nothing'}); {way_out}"
        )
    if header[3] != dims:
        kind = _KINDS.get(header[3], f"arrays with {header[3]} dimensions")
        raise InputError(f"{path} has {kind}, wanted {_KINDS[dims]}; {way_out}")
    if len(header) < 4 + 4 * dims:
        raise InputError(f"{path} is cut off in its header; {way_out}")
    shape = tuple(np.frombuffer(header[4:], ">u4").tolist())
    most = max(PARTS.values())
    if shape[0] > most or max(shape[1:], default=0) > SIDE:
        sizes = " × ".join(f"{size:,}" for size in shape)
        raise InputError(f"{path}: size {sizes}, wanted at most {most:,} of {SIDE} × {SIDE}; {way_out}")
    return shape
