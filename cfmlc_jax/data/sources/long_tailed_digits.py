"""Long-tailed digits from the embedded data: one digit per image, with many images of some digits and few of others."""

from typing import Any

import numpy as np
from PIL import Image

from cfmlc_jax.data.sources import Record, imbalance
from cfmlc_jax.data.sources.scenes import CLASS_NAMES, Box, Scenes
from cfmlc_jax.errors import InputError

# Split -> the split of the scenes with the same handwritings and photo regions.
SPLITS = {"train": "train", "val": "val", "test": "test_balanced"}
MOST = 1000
WINDOW_STREAM = 2


class LongTailedDigits:
    """Grey digits on photo textures, single-label with 10 classes: uint8 [size, size, 3], three equal channels.

    Each image is cut from a scene with one digit (`scenes.Scenes`: a handwriting of random size and brightness
    on part of a photo), around the digit and half as wide as the scene. The digit is complete, and within 1/16
    of the side from the centre if the scene has room. In "train" the numbers of images follow the imbalance.
    "val" and "test" have equally many images of each digit and use other handwritings; "test" also uses
    other photo regions. With the same seed, a smaller subset of a digit is part of a larger one.

    Images of a common digit reuse the 350 training handwritings with other sizes, colours and backgrounds. By
    default there are 1000, 599, 359, 215, 129, 77, 46, 27, 16 and 10 images. By the reference's limits of 100
    and 20, digits 0 to 4 are many-shot, 5 to 7 medium-shot, 8 and 9 few-shot.

    class_counts: training images of each digit, int64 [10], for every split.

    Args:
        split: train, val or test.
        kind: kind of imbalance, one of `imbalance.KINDS`.
        ratio: number of images of the rarest digit divided by that of the most common, in (0, 1].
        most: training images of the most common digit.
        num_test: images of each digit in val and in test.
        size: side of the image, pixels, 16 to 256; digits are 9/16 to 13/16 of it.
        seed: seed of the images and of the ranks, at least 0.
        shuffle_classes: whether the seed decides which digits are rare; False: 0 is the most common, 9 the
            rarest.

    Raises:
        InputError: an unknown split, or a number out of range (`imbalance.class_counts`, `scenes.Scenes`).
    """

    class_names = CLASS_NAMES

    def __init__(
        self,
        split: str,
        *,
        kind: str = "exponential",
        ratio: float = 0.01,
        most: int = MOST,
        num_test: int = 100,
        size: int = 32,
        seed: int = 0,
        shuffle_classes: bool = False,
    ):
        if split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        for name, value in (("most", most), ("num_test", num_test)):
            if value < 1:
                raise InputError(
                    f"long-tailed digits: {name} {value} is not a number of images; give 1 or more"
                )
        if not 16 <= size <= 256:
            raise InputError(f"long-tailed digits: size {size} is out of range; give 16 to 256 pixels")
        self.class_counts = imbalance.class_counts(
            most, 10, kind, ratio, order_seed=seed if shuffle_classes else None
        )
        counts = self.class_counts if split == "train" else np.full(10, num_test)
        self._scenes, self._kept = _scenes_with(counts, split=SPLITS[split], size=2 * size, seed=seed)
        self._size, self._split, self._seed = size, split, seed
        self.labels = self._scenes.labels[self._kept]
        self.ids = [f"{split}-{scene:06d}" for scene in self._kept]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        pixels, (digit, *_) = self._scenes.painted(self._kept[index])
        left, top = self._corner(index, digit.box)
        window = Image.fromarray(pixels).crop((left, top, left + self._size, top + self._size))
        return Record(
            image=np.array(window.convert("L").convert("RGB")),
            labels=self.labels[index].copy(),
            id=self.ids[index],
            where=f"image {index} of {self!r}",
        )

    def __repr__(self) -> str:
        return (
            f"LongTailedDigits({self._split!r}, counts={self.labels.sum(axis=0, dtype=int).tolist()}, "
            f"size={self._size}, seed={self._seed})"
        )

    def _corner(self, index: int, box: Box) -> tuple[int, int]:
        """Left and top of a window in the scene that contains the box."""
        stream = (list(SPLITS).index(self._split), WINDOW_STREAM, int(self._kept[index]))
        seed = np.random.SeedSequence(self._seed, spawn_key=stream)
        draws = np.random.Generator(np.random.PCG64(seed)).random(2).tolist()
        reach, corner = self._size // 16, []
        for draw, near, far in zip(draws, box[:2], box[2:], strict=True):
            wanted = (near + far - self._size) // 2 - reach + int(draw * (2 * reach + 1))
            corner.append(min(max(wanted, 0, far - self._size), near, self._size))
        return corner[0], corner[1]


def _scenes_with(counts: np.ndarray, **fields: Any) -> tuple[Scenes, np.ndarray]:
    """Scenes with one digit each, enough for the counts, and the indices of the first counts[c] of each digit c."""
    num_scenes = 10 * int(counts.max())
    while True:
        scenes = Scenes(num_scenes=num_scenes, min_digits=1, max_digits=1, bias=0.0, **fields)
        if (scenes.labels.sum(axis=0, dtype=int) >= counts).all():
            break
        num_scenes += num_scenes // 4 + 10
    rank = np.cumsum(scenes.labels, axis=0, dtype=int)
    digits = scenes.labels.argmax(axis=1)
    return scenes, np.flatnonzero(rank[np.arange(num_scenes), digits] <= counts[digits])
