"""Digits with one label for each mechanism: shape, texture and background.

In the training split the three labels are equal, so that a classifier can rely on any of them. In the test split
texture and background are drawn independently, and only the shape says which digit it is.
"""

import copy
import operator
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.data.sources import Record, colored_mnist_file, digit_looks, idx_files, imbalance, scenes
from cfmlc_jax.data.sources.digit_looks import Look
from cfmlc_jax.errors import InputError

# Split -> the part of the handwritings; a split's position here selects its random stream.
SPLITS = {"train": "train", "val": "val", "test_iid": "test", "test": "test", "train_decorrelated": "train"}
DECORRELATED = ("test", "train_decorrelated")
LABEL_STREAM, LOOK_STREAM = 0, 1
# Part -> file and rows of MNIST. The reference tests double colours and textures on the end of the training file,
# and colours on the official test file. Here val has the other one.
OFFICIAL_TRAIN = 50_000
_END = slice(OFFICIAL_TRAIN, 60_000)
_MNIST = {
    "train": ("train", slice(0, OFFICIAL_TRAIN)),
    "val": ("t10k", slice(0, 10_000)),
    "test": ("train", _END),
}
_COLORED_MNIST = {**_MNIST, "val": ("train", _END), "test": ("t10k", slice(0, 10_000))}


class Handwritings(NamedTuple):
    """Handwritten digits: ink uint8 [n, 28, 28], digits int64 [n], and their rows in the file, int64 [n].

    recorded: uint8 [n, 28, 28, 3], images that are used as they are; None: all images are painted.
    """

    ink: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    recorded: np.ndarray | None = None


class MechanismDigits:
    """A single-label split: uint8 [32, 32, 3], labels uint8 [n, 10], one-hot of the digit's shape.

    ================== ============ ============================================================
    split              handwritings texture and background
    ================== ============ ============================================================
    train              train        the digit's own
    val                val          the digit's own
    test_iid           test         the digit's own
    test               test         two labels drawn independently and uniformly for each image
    train_decorrelated train        likewise: what a classifier could learn without the confounding
    ================== ============ ============================================================

    An image's random draws depend on seed, split and index alone. The reference draws anew whenever it reads an
    image, and freezes the draws for its classifiers; here they are frozen. Its images are floats, and jitter can
    bring them outside [0, 1]; here they are clipped and rounded to 256 levels, as records are uint8.

    mechanisms: int32 [n, 3], the label of each mechanism: shape, texture, background
        (`causal.mechanisms.MECHANISMS`).
    side: of the images, pixels.
    shows_background: whether the label of the background changes the image.

    Args:
        name: name of the data set, for `repr` and messages.
        split: one of `SPLITS`.
        handwritings: those of the split's part.
        look: how digits are painted.
        seed: at least 0.

    Raises:
        InputError: an unknown split, or a negative seed.
    """

    class_names = scenes.CLASS_NAMES

    def __init__(self, name: str, split: str, handwritings: Handwritings, look: Look, *, seed: int = 0):
        require_split(name, split)
        if seed < 0:
            raise InputError(f"{name}: seed {seed} is negative; give 0 or more")
        self._name, self._split, self._seed = name, split, seed
        self._handwritings, self._look = handwritings, look
        self.side, self.shows_background = digit_looks.SIDE, look.shows_background
        shapes = handwritings.classes
        self.labels = imbalance.one_hot(shapes, 10)
        self.ids = [f"{split}-{row:05d}" for row in handwritings.rows.tolist()]
        others = np.repeat(shapes[:, None], 2, axis=1)
        if split in DECORRELATED:
            others = (self._generator(LABEL_STREAM).random((len(shapes), 2)) * 10).astype(int)
            if handwritings.recorded is not None:
                others[:, 0] = colored_mnist_file.nearest_colours(handwritings.recorded)
        self.mechanisms = np.column_stack([shapes, others]).astype(np.int32)
        self._content = _checksum(
            handwritings.ink if handwritings.recorded is None else handwritings.recorded,
            self.mechanisms,
            start=look.fingerprint,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        index = self._position(index)
        return Record(
            image=self._image(index),
            labels=self.labels[index].copy(),
            id=self.ids[index],
            where=f"image {index} of {self!r}",
        )

    def __repr__(self) -> str:
        side = "" if self.side == digit_looks.SIDE else f"side={self.side}, "
        return (
            f"{self._name}({self._split!r}, images={len(self)}, {side}seed={self._seed}, "
            f"content={self._content:08x})"
        )

    def mask(self, index: int) -> np.ndarray:
        """The pixels of the digit: bool [side, side]."""
        ink = digit_looks.ink_mask(self._handwritings.ink[self._position(index)], self._look.places)
        return np.pad(ink, (self.side - digit_looks.SIDE) // 2)

    def painted_with(
        self, textures: np.ndarray, backgrounds: np.ndarray, *, side: int = digit_looks.SIDE
    ) -> "MechanismDigits":
        """The same handwritings with other labels of texture and background, and the same random draws.

        Two of them differ by their labels alone. None has recorded images.

        Args:
            textures: int [n].
            backgrounds: int [n].
            side: of the images, 32 or 64 pixels; the digit is in the middle, as large as it is in 32.
        """
        painted = copy.copy(self)
        painted.side = side
        painted._handwritings = self._handwritings._replace(recorded=None)
        painted.mechanisms = np.column_stack([self.mechanisms[:, 0], textures, backgrounds]).astype(np.int32)
        painted._content = _checksum(self._handwritings.ink, painted.mechanisms, start=self._look.fingerprint)
        return painted

    def _image(self, index):
        recorded = self._handwritings.recorded
        if recorded is not None:
            return recorded[index][np.ix_(self._look.places, self._look.places)]
        _, texture, background = self.mechanisms[index].tolist()
        draws = self._generator(LOOK_STREAM, index).random(self._look.num_draws).tolist()
        return self._look.paint(self.mask(index), texture, background, draws)

    def _position(self, index):
        """The index from 0; a negative one counts from the end. Raises IndexError like a list."""
        return range(len(self))[operator.index(index)]

    def _generator(self, *stream):
        """A PCG64 generator, named explicitly because NumPy may change what `default_rng` returns."""
        key = (list(SPLITS).index(self._split), *stream)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=key)))


def _checksum(*arrays, start):
    for array in arrays:
        start = zlib.crc32(array.tobytes(), start)
    return start


def require_split(name: str, split: str) -> None:
    """Raise unless the split exists.

    Raises:
        InputError: the message lists those that do.
    """
    if split not in SPLITS:
        raise InputError(f"{name}: split {split!r} does not exist; use one of {', '.join(SPLITS)}")


_EMBEDDED: dict[str, Callable[[], Look]] = {
    "colored_digits": digit_looks.Coloured,
    "double_colored_digits": digit_looks.DoubleColoured,
    "wildlife_digits": lambda: digit_looks.Textured(digit_looks.embedded_textures()),
}
# The data sets of `embedded` and of `official`.
EMBEDDED, OFFICIAL = tuple(_EMBEDDED), ("colored_mnist", "double_colored_mnist", "wildlife_mnist")


def embedded(name: str, split: str, *, seed: int = 0) -> MechanismDigits:
    """A split of the 5,000 embedded digits: of each, 350 handwritings for training, 50 for val, 100 for test.

    Args:
        name: "colored_digits", "double_colored_digits" or "wildlife_digits".
        split: one of `SPLITS`.
        seed: at least 0.

    Raises:
        InputError: see `MechanismDigits`.
    """
    require_split(name, split)
    # Digits take turns, so that any stretch of a split has all of them.
    rows = np.array(scenes.instances(SPLITS[split])).T.ravel()
    images, labels = scenes.digit_images()
    handwritings = Handwritings(images[rows], labels[rows].astype(np.int64), rows)
    return MechanismDigits(name, split, handwritings, _EMBEDDED[name](), seed=seed)


def official(name: str, root: Path, split: str, *, seed: int = 0) -> MechanismDigits:
    """A split of the official MNIST files, 50,000 images for training, 10,000 each for val and for test.

    If the root has `colored_mnist_file.NAME`, "colored_mnist" uses its images as they are for train, val and test,
    and paints their shapes anew for the two other splits. The texture's labels of test are then the nearest mean
    colours, because the file has none.

    Args:
        name: "colored_mnist", "double_colored_mnist" or "wildlife_mnist".
        root: folder of the files; see `idx_files.read` and `digit_looks.read_textures`.
        split: one of `SPLITS`.
        seed: at least 0.

    Raises:
        InputError: see `MechanismDigits`, `idx_files.read`, `digit_looks.read_textures` and
            `colored_mnist_file.read`.
    """
    require_split(name, split)
    files = _COLORED_MNIST if name == "colored_mnist" else _MNIST
    part, rows = files[SPLITS[split]]
    if name == "colored_mnist" and (root / colored_mnist_file.NAME).is_file():
        pixels, classes = (array[rows] for array in colored_mnist_file.read(root, part))
        ink = np.where(pixels.any(axis=-1), 255, 0).astype(np.uint8)
        recorded = pixels.copy() if split in ("train", "val", "test") else None
    else:
        # Copies, so that the rest of the file is not kept in memory.
        ink, classes = (array[rows].copy() for array in idx_files.read(root, part))
        recorded = None
    handwritings = Handwritings(ink, classes, np.arange(rows.start, rows.stop), recorded)
    return MechanismDigits(name, split, handwritings, _official_look(name, root), seed=seed)


def _official_look(name, root) -> Look:
    if name == "wildlife_mnist":
        return digit_looks.Textured(digit_looks.read_textures(root))
    return digit_looks.Coloured() if name == "colored_mnist" else digit_looks.DoubleColoured()
