"""Long tails: how many training images each class keeps, and which."""

import numpy as np

from cfmlc_jax.errors import InputError

KINDS = ("exponential", "step")


def class_counts(
    most: int, num_classes: int, kind: str, ratio: float, *, order_seed: int | None = None
) -> np.ndarray:
    """Training images of every class, int64 [k].

    By rank r, from the commonest class to the rarest, ⌊most · ratio^(r / (k − 1))⌋ ("exponential") or
    `most` in the first half and ⌊most · ratio⌋ in the second ("step"), as in the reference (Tang et
    al., NeurIPS 2020, whose CIFAR splits are those of Cui et al., CVPR 2019).

    Args:
        most: images of the commonest class.
        num_classes: k, at least 2.
        kind: one of `KINDS`.
        ratio: images of the rarest class by those of the commonest, in (0, 1].
        order_seed: draws the ranks; None: a class's rank is its index, as in the reference.

    Raises:
        InputError: another kind or ratio; a class left without an image, named.
    """
    if kind not in KINDS:
        raise InputError(f"imbalance {kind!r} is not one of {', '.join(KINDS)}")
    if not 0 < ratio <= 1:
        raise InputError(f"ratio {ratio} is not in (0, 1]; give the rarest class's images by the commonest's")
    # Python's floats, one by one: the reference's powers, whose last digit decides where they are whole.
    if kind == "exponential":
        by_rank = [int(most * ratio ** (rank / (num_classes - 1))) for rank in range(num_classes)]
    else:
        by_rank = [most if 2 * rank < num_classes else int(most * ratio) for rank in range(num_classes)]
    counts = np.array(by_rank)[_ranks(num_classes, order_seed)]
    if not counts.all():
        empty = np.flatnonzero(counts == 0)
        raise InputError(
            f"class {empty[0]} is left without a training image ({len(empty)} of {num_classes} are): ratio {ratio} "
            f"of {most} images is below 1; give at least {1 / most:.2g}"
        )
    return counts


def _ranks(num_classes, seed):
    if seed is None:
        return np.arange(num_classes)
    return np.argsort(_generator(seed, num_classes).random(num_classes), kind="stable")


def draw(classes: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """Positions of counts[c] random images of each class c, ascending: [n] classes, [k] -> int64 [sum of counts].

    With one seed, fewer images of a class are a part of more of them.

    Raises:
        InputError: a class that has fewer images than that.
    """
    kept = []
    for number, count in enumerate(counts):
        own = np.flatnonzero(classes == number)
        if len(own) < count:
            raise InputError(
                f"class {number} has {len(own)} images, {count} are wanted; give a smaller imbalance"
            )
        order = np.argsort(_generator(seed, number).random(len(own)), kind="stable")
        kept.append(own[order[:count]])
    return np.sort(np.concatenate(kept))


def _generator(seed, stream):
    """PCG64 by name: NumPy reserves the right to change what `default_rng` returns."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,))))


def one_hot(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels uint8 [n, k] of one class an image: [n] -> [n, k]."""
    labels = np.zeros((len(classes), num_classes), np.uint8)
    labels[np.arange(len(classes)), classes] = 1
    return labels
