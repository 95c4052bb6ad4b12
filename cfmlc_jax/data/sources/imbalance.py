"""Long-tailed subsets: how many training images each class keeps, and which ones."""

import numpy as np

from cfmlc_jax.errors import InputError

KINDS = ("exponential", "step")


def class_counts(
    most: int, num_classes: int, kind: str, ratio: float, *, order_seed: int | None = None
) -> np.ndarray:
    """Number of training images of every class: int64 [k].

    The class of rank r, from the most common to the rarest, has ⌊most · ratio^(r / (k − 1))⌋ images
    ("exponential"), or `most` in the first half of the ranks and ⌊most · ratio⌋ in the second ("step"), as in
    the reference (Tang et al., NeurIPS 2020, whose CIFAR splits are those of Cui et al., CVPR 2019).

    Args:
        most: images of the most common class.
        num_classes: k, at least 2.
        kind: one of `KINDS`.
        ratio: number of images of the rarest class divided by that of the most common, in (0, 1].
        order_seed: seed of the ranks; None: a class's rank is its index, as in the reference.

    Raises:
        InputError: an unknown kind, a ratio outside (0, 1], or a class without an image (which is named).
    """
    if kind not in KINDS:
        raise InputError(f"imbalance {kind!r} is not one of {', '.join(KINDS)}")
    if not 0 < ratio <= 1:
        raise InputError(
            f"ratio {ratio} is not in (0, 1]; give the images of the rarest class divided by those of the most common"
        )
    # Computed with Python floats like the reference's, because the last digit matters if a power is a whole number.
    if kind == "exponential":
        by_rank = [int(most * ratio ** (rank / (num_classes - 1))) for rank in range(num_classes)]
    else:
        by_rank = [most if 2 * rank < num_classes else int(most * ratio) for rank in range(num_classes)]
    counts = np.array(by_rank)[_ranks(num_classes, order_seed)]
    if not counts.all():
        empty = np.flatnonzero(counts == 0)
        raise InputError(
            f"class {empty[0]} has no training image ({len(empty)} of {num_classes} classes have none): ratio {ratio} "
            f"of {most} images is below 1; give a ratio of at least {1 / most:.2g}"
        )
    return counts


def _ranks(num_classes, seed):
    if seed is None:
        return np.arange(num_classes)
    return np.argsort(_generator(seed, num_classes).random(num_classes), kind="stable")


def draw(classes: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Positions of counts[c] random images of each class c, ascending: [n], [k] -> int64 [sum of counts].

    With the same seed, a smaller subset of a class is part of a larger one.

    Raises:
        InputError: a class has fewer images than its count.
    """
    kept = []
    for number, count in enumerate(counts):
        own = np.flatnonzero(classes == number)
        if len(own) < count:
            raise InputError(
                f"class {number} has {len(own)} images, wanted {count}; choose a smaller imbalance"
            )
        order = np.argsort(_generator(seed, number).random(len(own)), kind="stable")
        kept.append(own[order[:count]])
    return np.sort(np.concatenate(kept))


def _generator(seed, stream):
    """A PCG64 generator, named explicitly because NumPy may change what `default_rng` returns."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))


def one_hot(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """One-hot labels of single-label images: classes [n] -> uint8 [n, k]."""
    labels = np.zeros((len(classes), num_classes), np.uint8)
    labels[np.arange(len(classes)), classes] = 1
    return labels
