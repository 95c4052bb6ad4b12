"""Small copies of published sets of photos, in their official layouts."""

from pathlib import Path

import numpy as np
from PIL import Image

from cfmlc_jax.metrics.imagenet_groups import CATEGORIES

IN9_FOLDERS = (
    "00_dog", "01_bird", "02_wheeled vehicle", "03_reptile", "04_carnivore", "05_insect", "06_musical instrument",
    "07_primate", "08_fish",
)  # fmt: skip


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((40, 40)).save(path)


def write_cue_conflict(root: Path) -> Path:
    """Of each shape one image with its own texture, one with that of the category behind it."""
    names = list(CATEGORIES)
    for number, name in enumerate(names):
        following = names[(number + 1) % len(names)]
        write_image(root / name / f"{name}1-{name}2.png", number)
        write_image(root / name / f"{name}1-{following}3.png", 100 + number)
    return root


def write_in9(root: Path, variations=("original", "mixed_same", "mixed_rand")) -> Path:
    """One image of each class and variation, and a second dog in mixed_same."""
    for i, variation in enumerate(variations):
        for number, name in enumerate(IN9_FOLDERS):
            write_image(root / variation / "val" / name / "fg_1_bg_2.JPEG", 10 * i + number)
        if variation == "mixed_same":
            write_image(root / variation / "val" / IN9_FOLDERS[0] / "fg_3_bg_4.JPEG", 99)
    return root
