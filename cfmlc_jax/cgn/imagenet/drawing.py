"""Counterfactuals of a generator for ImageNet: their classes and noise, and the lists of good classes.

As in the reference, the mechanisms of an image have classes of their own and the same noise.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn.imagenet.system import compose
from cfmlc_jax.config.cgn_imagenet import RANDOM
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import biggan_deep
from cfmlc_jax.models.generators.imagenet_cgn import Composition, ImageNetGenerator

# Images that are drawn at once.
AT_ONCE = 16
# Classes of ImageNet whose shapes, textures and backgrounds look good, as the reference lists them.
BEST_CLASSES: dict[str, Sequence[int]] = {
    mechanisms.SHAPE: (
        9, 18, 22, 35, 56, 63, 96, 97, 119, 207, 225, 260, 275, 323, 330, 350, 370, 403, 411, 414, 427, 438, 439, 441,
        460, 484, 493, 518, 532, 540, 550, 559, 561, 570, 604, 647, 688, 713, 724, 749, 751, 756, 759, 779, 780, 802,
        814, 833, 841, 849, 850, 859, 869, 872, 873, 874, 876, 880, 881, 883, 894, 897, 898, 900, 907, 930, 933, 945,
        947, 949, 950, 953, 963, 966, 967, 980,
    ),
    mechanisms.TEXTURE: (
        12, 15, 18, 25, 54, 66, 72, 130, 145, 207, 251, 267, 271, 275, 293, 323, 385, 388, 407, 409, 427, 438, 439, 441,
        454, 461, 468, 482, 483, 486, 490, 492, 509, 530, 555, 607, 608, 629, 649, 652, 681, 688, 719, 720, 728, 737,
        741, 751, 756, 779, 800, 810, 850, 852, 854, 869, 881, 907, 911, 930, 936, 937, 938, 941, 949, 950, 951, 954,
        957, 959, 963, 966, 985, 987, 992,
    ),
    mechanisms.BACKGROUND: (
        7, 9, 20, 30, 35, 46, 50, 65, 72, 93, 96, 97, 119, 133, 147, 337, 350, 353, 354, 383, 429, 460, 693, 801, 888,
        947, 949, 952, 953, 955, 958, 970, 972, 973, 974, 977, 979, 998,
    ),
}  # fmt: skip
_OF_IMAGENET = 1000


class ByLabels:
    """A generator that takes labels: `apply(variables, labels, noise, train=…)` -> `Composition` without target.

    Args:
        generator: takes one-hot classes.
        truncation: of noise and statistics, in (0, 1].

    Raises:
        InputError: the truncation is outside.
    """

    def __init__(self, generator: ImageNetGenerator, truncation: float):
        biggan = generator.biggan()
        biggan_deep.neighbours(
            truncation, biggan.num_statistics, biggan.interpolation
        )  # raises outside (0, 1]
        self._generator, self._truncation = generator, truncation
        self.num_classes, self._noise_size = biggan.num_classes, biggan.noise_size

    def apply(self, variables, labels: Mapping[str, Any], noise, *, train: bool) -> Composition:
        """Composed images of labels {mechanism: int32 [b]} and of noise [b, z], by the entries `MODEL` of `learned`."""
        classes = {name: jax.nn.one_hot(label, self.num_classes) for name, label in labels.items()}
        composed, _ = compose(self._generator, variables, noise, classes, self._truncation, train=train)
        # Without the target, the frozen BigGAN is not run.
        return dataclasses.replace(composed, target=None)

    def draw_noise(self, key, b: int):
        """Truncated normal noise: key -> [b, z]."""
        return mechanisms.truncated_noise(key, (b, self._noise_size), self._truncation)


def class_lists(choice: str, num_classes: int) -> dict[str, Sequence[int]]:
    """{mechanism: the classes that are drawn from, uniformly}.

    Args:
        choice: one of `config.cgn_imagenet.CLASSES`.
        num_classes: of the generator.

    Raises:
        InputError: the lists of the best classes are for another number of classes.
    """
    if choice == RANDOM:
        return mechanisms.same_for_all(range(num_classes))
    if num_classes != _OF_IMAGENET:
        raise InputError(
            f"classes {choice!r} are lists of ImageNet's {_OF_IMAGENET} classes, but this generator has {num_classes}; "
            f"use {RANDOM!r}"
        )
    return BEST_CLASSES


def inputs_of(lists: Mapping[str, Sequence[int]]) -> Callable[..., tuple]:
    """A function as `counterfactuals.draw_inputs`, which draws classes from lists (`class_lists`)."""
    return functools.partial(_draw_inputs, lists)


def _draw_inputs(lists, key, b, per_shape, generator: ByLabels):
    """Labels {mechanism: int32 [b]} and noise [b, z]: every `per_shape` images have the shape and the noise in common."""
    *label_keys, noise_key = jax.random.split(key, 4)
    labels = {}
    for name, label_key in zip(mechanisms.MECHANISMS, label_keys):
        copies = per_shape if name == mechanisms.SHAPE else 1
        choices = jnp.asarray(list(lists[name]), jnp.int32)
        drawn = choices[jax.random.randint(label_key, (b // copies,), 0, len(choices))]
        labels[name] = jnp.repeat(drawn, copies)
    return labels, jnp.repeat(generator.draw_noise(noise_key, b // per_shape), per_shape, axis=0)
