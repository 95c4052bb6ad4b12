"""Standardisation of pixels by mean and deviation, which single-label recipes use and multi-label recipes do not."""

from typing import Any, NamedTuple

import numpy as np


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


def standardise(pixels: Any, normalisation: Normalisation) -> Any:
    """(pixels − mean) / deviation for each colour: floats [..., 3] in [0, 1] -> [..., 3] of the same type."""
    mean, deviation = (
        np.asarray(colours, pixels.dtype).reshape((1,) * (pixels.ndim - 1) + (3,))
        for colours in normalisation
    )
    return (pixels - mean) / deviation
