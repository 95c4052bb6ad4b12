"""Patches that a program cuts have the pixels of those that the host cuts."""

import jax
import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.data.views.patches import split_views
from cfmlc_jax.export.patches import host_patches


@pytest.mark.parametrize(
    ("size", "grid", "overlap"), [(64, 2, 0.0), (64, (2, 3), 0.0), (96, 3, 0.25), (40, 7, 0.5), (35, 4, 0.0)]
)
def test_pixels_are_the_hosts(rng, size, grid, overlap):
    pixels = rng.integers(0, 256, (2, size, size, 3), np.uint8)
    expected = [
        [np.asarray(view) for view in split_views(Image.fromarray(image), size, grid, overlap)[1:]]
        for image in pixels
    ]
    cut = jax.jit(lambda images: host_patches(images, grid, overlap))(pixels.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(expected))


def test_extreme_levels_stay_in_range():
    pixels = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((4, 4)))
    images = np.repeat(pixels[None, :, :, None], 3, axis=3).astype(np.float32)
    cut = np.asarray(host_patches(images, 3))
    assert (cut.min(), cut.max()) == (0, 255)
