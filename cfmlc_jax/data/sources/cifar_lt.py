"""Long-tailed CIFAR-10 and CIFAR-100: subsets of the official files with fewer images for rarer classes."""

from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import Record, imbalance
from cfmlc_jax.data.sources.cifar_files import DATA_SETS, read
from cfmlc_jax.data.sources.files import fingerprint
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

SPLITS = ("train", "val", "test")


class CifarLT:
    """A single-label split of CIFAR-LT with k classes: images uint8 [32, 32, 3] in the order of the files.

    "train" is a subset of the 50,000 training images, drawn by `seed`; "val" and "test" are both the
    complete test split of 10,000, as in the reference (Tang et al., NeurIPS 2020). The images of the
    reference's runs are not known, because it drew them without a seed. An id is the split's name and
    the image's index in it.

    class_counts: training images of each class, int64 [k], for every split (`imbalance.class_counts`).

    Args:
        name: "cifar10_lt" or "cifar100_lt".
        root: see `cifar_files.read`.
        split: one of `SPLITS`.
        kind: kind of imbalance, one of `imbalance.KINDS`.
        ratio: number of images of the rarest class divided by that of the most common, in (0, 1].
        seed: seed of the subset, and of the ranks of classes.
        shuffle_classes: whether the seed decides which classes are rare; False: the last classes are rare, as
            in the reference.

    Raises:
        InputError: as `cifar_files.read` and `imbalance.class_counts`; or an unknown split.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        split: str,
        *,
        kind: str = "exponential",
        ratio: float = 0.01,
        seed: int = 0,
        shuffle_classes: bool = False,
    ):
        if split not in SPLITS:
            raise InputError(f"split {split!r} does not exist; use one of {', '.join(SPLITS)}")
        data_set = DATA_SETS[name]
        k = data_set.num_classes
        self.class_counts = imbalance.class_counts(
            data_set.num_train // k, k, kind, ratio, order_seed=seed if shuffle_classes else None
        )
        is_train = split == "train"
        images = read(data_set, path_of(root), train=is_train)
        kept = np.arange(len(images.classes))
        if is_train:
            kept = imbalance.draw(images.classes, self.class_counts, seed)
        self.class_names = images.class_names
        self.labels = imbalance.one_hot(images.classes[kept], k)
        self.ids = [f"{'train' if is_train else 'test'}-{place:05d}" for place in kept]
        self._pixels = images.pixels[kept]
        self._name = name

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        return Record(
            image=self._pixels[index],
            labels=self.labels[index].copy(),
            id=self.ids[index],
            where=f"{self._name} {self.ids[index]}",
        )

    def __repr__(self) -> str:
        return (
            f"CifarLT({self._name!r}, images={len(self)}, classes={len(self.class_names)}, "
            f"content={fingerprint(self.class_names, self.ids, self.labels)})"
        )
