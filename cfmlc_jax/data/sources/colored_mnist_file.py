"""Colored MNIST as Kim et al. (CVPR 2019) distribute it: the file that the reference downloads.

It is a pickled dict with "train_image" uint8 [60000, 28, 28, 3], "train_label" [60000], and 10,000 of "test_image" and
"test_label". It does not say which of the ten colours an image has.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.data.sources import digit_looks, idx_files, pickles
from cfmlc_jax.errors import InputError

NAME = "mnist_10color_jitter_var_0.020.npy"
_KEYS = {"train": "train", "t10k": "test"}
_UNREADABLE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
               OverflowError, MemoryError)  # fmt: skip


class Images(NamedTuple):
    """Coloured digits on black, uint8 [n, 28, 28, 3], and their digits, int64 [n]."""

    pixels: np.ndarray
    classes: np.ndarray


def read(root: Path, part: str) -> Images:
    """All images of a part, "train" or "t10k", in the order of the file. No code of the pickle is run.

    Raises:
        InputError: the file is damaged, or without these images and labels in these shapes.
    """
    path = root / NAME
    way_out = (
        "download colored_mnist.tar.gz again (https://github.com/feidfoe/learning-not-to-learn), or remove the "
        "file: colours are then drawn by the same rules"
    )
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            header(file)
            arrays = pickles.load(file, encoding="latin1").item()
            pixels, classes = (np.asarray(arrays[f"{_KEYS[part]}_{what}"]) for what in ("image", "label"))
    except _UNREADABLE as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path} cannot be read ({reason}); {way_out}") from error
    wanted = (idx_files.PARTS[part], 28, 28, 3)
    if pixels.shape != wanted or pixels.dtype != np.uint8 or classes.size != wanted[0]:
        raise InputError(
            f"{path}: {pixels.dtype} images {list(pixels.shape)} and {classes.size:,} labels, wanted uint8 "
            f"images {list(wanted)} and as many labels; {way_out}"
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise InputError(f"{path}: labels are {classes.dtype}, wanted whole numbers; {way_out}")
    classes = classes.reshape(-1).astype(np.int64)
    idx_files.require_digits(classes, str(path), way_out)
    return Images(pixels, classes)


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """The label whose mean colour is nearest to that of each digit: uint8 [n, 28, 28, 3] -> int64 [n].

    An estimate: jitter of .14 confuses similar colours.
    """
    touched = pixels.any(axis=-1)
    totals = np.einsum("nhwc,nhw->nc", pixels, touched, dtype=np.float64)
    colours = totals / np.maximum(touched.sum(axis=(1, 2)), 1)[:, None] / 255
    return np.square(colours[:, None] - digit_looks.MEAN_COLOURS).sum(axis=-1).argmin(axis=1)
