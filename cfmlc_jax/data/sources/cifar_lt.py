"""Long-tailed CIFAR-10 and CIFAR-100: the official files, fewer and fewer images from class to class."""

from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import Record, imbalance
from cfmlc_jax.data.sources.cifar_files import DATA_SETS, read
from cfmlc_jax.data.sources.files import fingerprint
from cfmlc_jax.errors import InputError

SPLITS = ("train", "val", "test")


class CifarLT:
    """A split of CIFAR-LT: uint8 [32, 32, 3] with one label of k, in the order of the files.

    "train" is a part of the 50,000 training images, drawn by `seed`; "val" and "test" are both the
    whole test split of 10,000, as in the reference (Tang et al., NeurIPS 2020). Which images the
    reference's runs had is not known: it drew them without a seed. An id is the split's name and
    the image's place in it.

    class_counts: training images of each class, int64 [k], whatever the split (`imbalance.class_counts`).

    Args:
        name: "cifar10_lt" or "cifar100_lt".
        root: see `cifar_files.read`.
        split: one of `SPLITS`.
        kind: of the imbalance, one of `imbalance.KINDS`.
        ratio: images of the rarest class by those of the commonest, in (0, 1].
        seed: of the images that are kept, and of the ranks.
        shuffle_classes: the seed draws which classes are rare; False: the last ones are, as in the reference.

    Raises:
        InputError: see `cifar_files.read` and `imbalance.class_counts`; another split.
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
        images = read(data_set, Path(root).expanduser(), train=is_train)
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
