"""Shears and smoothing have Pillow's pixels, on noise, flat areas, edges and tiny images."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cfmlc_jax.data.views.randaugment import MAGNITUDES
from cfmlc_jax.data.views.shear import shear_x, shear_y, smooth

GREY = 128
# Those of RandAugment, and others: whole and half pixels per row, none, and so many that all is filled.
SLOPES = [
    *MAGNITUDES["ShearX"][1:],
    *-MAGNITUDES["ShearX"][1:],
    0.0,
    0.5,
    1.0,
    -1.0,
    1 / 3,
    -0.125,
    2.0,
    99.0,
    -99.0,
]


def images():
    rng = np.random.default_rng(0)
    arrays = {f"noise {h} x {w}": rng.integers(0, 256, (h, w, 3)) for h, w in ((64, 64), (33, 47), (50, 4))}
    arrays |= {
        f"tiny {h} x {w}": rng.integers(0, 256, (h, w, 3)) for h, w in ((1, 1), (3, 2), (2, 50), (3, 3))
    }
    arrays["black and white"] = 255 * rng.integers(0, 2, (40, 40, 3))
    arrays["flat squares"] = rng.integers(0, 256, (6, 6, 3)).repeat(8, 0).repeat(8, 1)
    arrays["ramp"] = np.broadcast_to(3 * np.arange(48)[None, :, None], (48, 48, 3))
    return {name: Image.fromarray(array.astype(np.uint8)) for name, array in arrays.items()}


IMAGES = images()


@pytest.mark.parametrize("name", IMAGES)
def test_shears_have_pillows_pixels(name):
    image = IMAGES[name]
    for slope in map(float, SLOPES):
        for shear, matrix in ((shear_x, (1, slope, 0, 0, 1, 0)), (shear_y, (1, 0, 0, slope, 1, 0))):
            expected = image.transform(
                image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(GREY,) * 3
            )
            np.testing.assert_array_equal(
                np.asarray(shear(image, slope, GREY)),
                np.asarray(expected),
                err_msg=f"{shear.__name__} {slope}",
            )


@pytest.mark.parametrize("name", IMAGES)
def test_smoothing_has_pillows_pixels(name):
    image = IMAGES[name]
    smoothed = smooth(image)
    np.testing.assert_array_equal(np.asarray(smoothed), np.asarray(image.filter(ImageFilter.SMOOTH)))
    assert smoothed is not image


def test_smoothing_rounds_every_sum_as_pillow():
    """All sums of a neighbourhood, 0 to 13 · 255."""
    sums = np.arange(13 * 255 + 1)
    middle = np.minimum(sums // 5, 255)
    rest = sums - 5 * middle
    around = rest[:, None] // 8 + (np.arange(8) < rest[:, None] % 8)
    squares = np.insert(around, 4, middle, axis=1).reshape(-1, 3, 3)
    tall = np.repeat(squares[..., None], 3, axis=3).astype(np.uint8).reshape(-1, 3, 3)
    image = Image.fromarray(tall)
    np.testing.assert_array_equal(np.asarray(smooth(image)), np.asarray(image.filter(ImageFilter.SMOOTH)))
