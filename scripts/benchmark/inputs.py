"""Inputs of both frameworks: matrices, noise, and photos, which are generated unless --images is set."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from cfmlc_jax.errors import InputError

CLASSES = 80
PHOTOS = 64  # number of generated photos, without --images
PHOTO_SIZE = (640, 480)
SUFFIXES = (".jpg", ".jpeg")
# Maps [n, h, w, c] on which single layers are measured, of 4 images × 5 views of 224 px.
LAYERS = {
    "blur": (20, 56, 56, 152),
    "squeeze_excite": (20, 28, 28, 608),
    "depthwise": (20, 28, 28, 256),
    "query2label": (20, 7, 7, 2048),
}


def matmul_side(platform: str) -> int:
    """Side of the square matrices that show a platform's peak performance."""
    return 2048 if platform == "cpu" else 8192


def matrix(side: int) -> np.ndarray:
    """Noise [side, side]."""
    return np.random.default_rng(0).standard_normal((side, side), np.float32)


def batch(flags) -> tuple[np.ndarray, np.ndarray]:
    """A batch of noise: views uint8 [b, v, s, s, 3], labels float32 [b, k]."""
    shape = (flags.batch, 1 + flags.grid**2, flags.size, flags.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8), labels(flags.batch)


def labels(count: int) -> np.ndarray:
    """A few classes of each image: float32 [count, k]."""
    return (np.random.default_rng(1).random((count, CLASSES)) < 0.04).astype(np.float32)


def layer_map(name: str) -> np.ndarray:
    """Noise of the shape of a layer's input."""
    return np.random.default_rng(2).standard_normal(LAYERS[name], np.float32)


def photos_in(folder: Path) -> list[Path]:
    """The folder's JPEG files, by name.

    Raises:
        InputError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"--images={folder} is not a folder; give a folder of JPEG photos, or omit the flag")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(
            f"--images={folder} has no file {' or '.join(SUFFIXES)}; give a folder of JPEG photos"
        )
    return paths


def write_photos(folder: Path, count: int) -> None:
    """Write `count` JPEG files with a photo-like spectrum, similar to COCO's in size and decoding time."""
    for i in range(count):
        photo(np.random.default_rng(i)).save(folder / f"{i:04d}.jpg", quality=95)


def photo(generator: np.random.Generator) -> Image.Image:
    """An image [480, 640, 3] of noise whose amplitude falls with every octave, as in photos."""
    width, height = PHOTO_SIZE
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 10):
        shape = (2**octave * height // width, 2**octave, 3)
        noise = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        smooth = np.asarray(noise.resize(PHOTO_SIZE, Image.Resampling.BICUBIC), np.float32)
        total += (smooth - 127.5) * 0.6 ** (octave - 2)
    return Image.fromarray(np.clip(total + 127.5, 0, 255).astype(np.uint8))


def warm_up(flags) -> int:
    """Number of images that an input pipeline produces before it is timed: more than its buffers hold."""
    return 32 * max(flags.workers, 1)


def epochs_of(flags, photos: int) -> int:
    """Number of passes over the photos that one timing of the input needs."""
    per_epoch = photos // flags.batch * flags.batch
    if not per_epoch:
        raise InputError(f"--images has {photos} photos, fewer than --batch={flags.batch}; lower --batch")
    return -(-(warm_up(flags) + flags.input_images + flags.batch) // per_epoch)


def images_per_time(batches: Iterable, flags) -> tuple[int, float]:
    """Images of a warm pipeline and the seconds they took; at least --input_images of them."""
    iterator = iter(batches)
    for _ in range(-(-warm_up(flags) // flags.batch)):
        next(iterator)
    steps = -(-flags.input_images // flags.batch)
    start = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return steps * flags.batch, time.perf_counter() - start
