"""Small files in the official forms of MNIST, and textures for them."""

import numpy as np
from PIL import Image

from cfmlc_jax.data.sources import idx_files

SIZES = {"train": 60, "t10k": 20}


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root, seed=0):
    """Random ink and labels, of `SIZES` images: {part: (ink [n, 28, 28], classes [n])}."""
    random = np.random.default_rng(seed)
    arrays = {}
    for part, count in SIZES.items():
        ink = random.integers(0, 256, (count, 28, 28)) * (random.random((count, 28, 28)) < 0.5)
        arrays[part] = ink.astype(np.uint8), random.permutation(np.arange(count) % 10)
        write_idx(root / f"{part}-images-idx3-ubyte", arrays[part][0])
        write_idx(root / f"{part}-labels-idx1-ubyte", arrays[part][1])
    return arrays


def write_textures(root, seed=0):
    """Files of odd sides, of which no pixel's centre lies between two others when they are resized to 150."""
    random = np.random.default_rng(seed)
    for kind in ("object", "background"):
        (root / "textures" / kind).mkdir(parents=True)
        for digit in range(10):
            pixels = random.integers(0, 256, (151 + 2 * digit, 171, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "textures" / kind / f"{digit}_some_{99 - digit}.jpg")


def accept_small_files(monkeypatch):
    """As if `SIZES` were official."""
    monkeypatch.setattr(idx_files, "PARTS", SIZES)
