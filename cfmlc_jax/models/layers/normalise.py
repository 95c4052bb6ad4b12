"""Standardisation of pixels by mean and deviation, which single-label recipes use and multi-label recipes do not."""

import difflib
import math
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.errors import InputError


class Normalisation(NamedTuple):
    """Mean and standard deviation of red, green and blue, for pixels in [0, 1]."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


# The reference's values (Tang et al., NeurIPS 2020), which uses CIFAR's for CIFAR-100 too.
CIFAR = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INATURALIST = Normalisation((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))
# Of ImageNet-9 (Xiao et al., ICLR 2021), with which the background gap is evaluated.
IMAGENET9 = Normalisation((0.4717, 0.4499, 0.3837), (0.2600, 0.2516, 0.2575))
# Pixels in [−1, 1], as generators make them (Sauer & Geiger, ICLR 2021).
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Of contrastive pre-training on images and texts (Radford et al., ICML 2021).
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
NORMALISATIONS = {
    "cifar": CIFAR,
    "imagenet": IMAGENET,
    "imagenet9": IMAGENET9,
    "inaturalist": INATURALIST,
    "half": HALF,
    "clip": CLIP,
}

# As the weights of init_from expect (`classify.finetune`); without such weights pixels stay in [0, 1].
AUTO = "auto"
_NUMBERS = "six numbers such as 0.5,0.5,0.5/0.2,0.2,0.2 (mean/deviation of red, green and blue)"


def parse(text: str) -> Normalisation | None:
    """The normalisation that a text names: a key of `NORMALISATIONS`, or its numbers; None for pixels in [0, 1].

    Args:
        text: "" and `AUTO` mean pixels in [0, 1]. Numbers are written "r,g,b/r,g,b": mean, then deviation.

    Raises:
        InputError: another text, or a deviation that is not above 0.
    """
    if text in ("", AUTO):
        return None
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    if "/" not in text:
        near = difflib.get_close_matches(text, NORMALISATIONS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"{text!r} is not one of '', {AUTO}, {', '.join(NORMALISATIONS)}, or {_NUMBERS}{hint}"
        )
    try:
        mean, deviation = (tuple(map(float, part.split(","))) for part in text.split("/"))
    except ValueError as error:
        raise InputError(f"{text!r} is not {_NUMBERS}") from error
    if len(mean) != 3 or len(deviation) != 3 or not all(map(math.isfinite, mean + deviation)):
        raise InputError(f"{text!r} is not {_NUMBERS}")
    if min(deviation) <= 0:
        raise InputError(f"{text!r} has a deviation of {min(deviation):g}; each must be above 0")
    return Normalisation(mean, deviation)


def text_of(normalisation: Normalisation | None) -> str:
    """The text that `parse` reads: the name of a normalisation if it has one, else its numbers; "" for None."""
    if normalisation is None or normalisation == ((0, 0, 0), (1, 1, 1)):
        return ""
    for name, known in NORMALISATIONS.items():
        if known == normalisation:
            return name
    return "/".join(",".join(repr(float(value)) for value in colours) for colours in normalisation)


def standardise(pixels: Any, normalisation: Normalisation) -> Any:
    """(pixels − mean) / deviation for each colour: floats [..., 3] in [0, 1] -> [..., 3] of the same type."""
    mean, deviation = (
        np.asarray(colours, pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (3,))
        for colours in normalisation
    )
    return (pixels - mean) / deviation
