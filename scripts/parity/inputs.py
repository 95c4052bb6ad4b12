"""Views and labels for both sides."""

from pathlib import Path

import numpy as np

from cfmlc_jax.classify.update import in_unit_range
from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
GRID = 2


def waves(batch: int, size: int, *, seed: int) -> np.ndarray:
    """Views of plane waves, four of at most 12 cycles in every channel: uint8 [batch, v, size, size, 3]."""
    shape = (batch, 1 + GRID**2, 3, 4, 1, 1)
    generator = np.random.default_rng(seed)
    vertical, horizontal = generator.uniform(-12, 12, (2, *shape))
    phase, amplitude = generator.uniform(0, 1, (2, *shape))
    place = np.arange(size) / size
    angle = 2 * np.pi * (vertical * place[:, None] + horizontal * place[None, :] + phase)
    pixels = 127.5 + 127.5 * (amplitude * np.cos(angle)).sum(axis=3) / 4
    return np.rint(np.moveaxis(pixels, 2, -1)).astype(np.uint8)


def photos(folder: Path, batch: int, size: int, step: int) -> np.ndarray:
    """Views of a step's photos, taken in order of names and cyclically: uint8 [batch, v, size, size, 3].

    Raises:
        InputError: the folder does not exist, has no photos, or has one that cannot be decoded.
    """
    if not folder.is_dir():
        raise InputError(f"--images={folder} is not a folder; give a folder of photos, or omit the flag")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"--images={folder} has no file {', '.join(SUFFIXES)}; give a folder of photos")
    to_views = ToViews(size, GRID)
    chosen = [paths[(step * batch + i) % len(paths)] for i in range(batch)]
    records = [Record(image=path.read_bytes(), labels=np.zeros(0), id=str(path)) for path in chosen]
    return np.stack([to_views(record)["views"] for record in records])


def make_views(flags, step: int) -> np.ndarray:
    """Views of a step, float32 [b, v, s, s, 3] in [0, 1]; those of step 0 are also used for evaluation."""
    if flags.images:
        pixels = photos(Path(flags.images), flags.batch, flags.size, step)
    else:
        pixels = waves(flags.batch, flags.size, seed=flags.seed * 1000 + step)
    return np.asarray(in_unit_range(pixels))


def make_batches(flags, num_classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(views [b, v, s, s, 3] in [0, 1], labels [b, k]) of every training step, float32."""
    batches = []
    for step in range(flags.train_steps):
        labels = np.random.default_rng([flags.seed, step]).random((flags.batch, num_classes)) < 0.2
        batches.append((make_views(flags, step), labels.astype(np.float32)))
    return batches
