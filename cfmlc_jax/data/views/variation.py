"""Mild variation of training images that come often: another place and other colours."""

import numpy as np
from PIL import Image


def varied(image: Image.Image, shift: float, gain: float, generator: np.random.Generator) -> Image.Image:
    """The image at another place and in other colours: RGB [h, w] -> RGB [h, w]; pixels at the border are repeated.

    Args:
        image: uint8 RGB.
        shift: the largest shift along each axis, a fraction of the side.
        gain: each channel is multiplied by a factor drawn from 1 ± gain.
        generator: draws shift and factors.
    """
    pixels = np.asarray(image)
    for axis, side in enumerate(pixels.shape[:2]):
        most = round(shift * side)
        places = np.arange(side) + generator.integers(-most, most + 1)
        pixels = pixels.take(np.clip(places, 0, side - 1), axis=axis)
    factors = generator.uniform(1 - gain, 1 + gain, 3).astype(np.float32)
    return Image.fromarray(np.clip(pixels * factors + 0.5, 0, 255).astype(np.uint8))
