"""Holes filled from their rims."""

import numpy as np
import pytest

from cfmlc_jax.context import inpainting
from cfmlc_jax.context.inpainting import grown, harmonic_fill


def ramp(height, width):
    """A picture whose colours change evenly along each axis, which is harmonic."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, 2 * y, x + y], axis=-1).astype(np.uint8)


def test_a_harmonic_picture_is_restored():
    image = ramp(40, 60)
    hole = np.zeros((40, 60), bool)
    hole[5:20, 10:30] = hole[25:28, 40:55] = True
    damaged = np.where(hole[..., None], 255, image).astype(np.uint8)
    np.testing.assert_array_equal(harmonic_fill(damaged, hole), image)


def test_only_the_hole_changes_and_its_values_stay_between_those_of_the_rim():
    image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    hole = np.zeros((30, 30), bool)
    hole[:12, 8:20] = True  # at the picture's edge
    filled = harmonic_fill(image, hole)
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    rim = image[grown(hole, 1) & ~hole]
    assert (filled[hole] >= rim.min(axis=0)).all()
    assert (filled[hole] <= rim.max(axis=0)).all()


def test_a_large_hole_is_filled_at_half_the_scale(monkeypatch):
    solve, sizes = inpainting._solved, []
    monkeypatch.setattr(inpainting, "MOST_PIXELS", 100)
    monkeypatch.setattr(
        inpainting, "_solved", lambda image, hole: sizes.append(hole.sum()) or solve(image, hole)
    )
    image = ramp(41, 61)
    hole = np.zeros((41, 61), bool)
    hole[8:30, 10:50] = True
    filled = harmonic_fill(np.where(hole[..., None], 0, image).astype(np.uint8), hole)
    np.testing.assert_array_equal(filled[~hole], image[~hole])
    np.testing.assert_allclose(filled[hole].astype(int), image[hole], atol=3)
    assert len(sizes) == 1
    assert sizes[0] <= 100


def test_no_hole_and_nothing_but_a_hole():
    image = ramp(4, 5)
    np.testing.assert_array_equal(harmonic_fill(image, np.zeros((4, 5), bool)), image)
    with pytest.raises(ValueError, match="nothing to fill it from"):
        harmonic_fill(image, np.ones((4, 5), bool))


def test_a_grown_hole_has_a_rim_on_every_side():
    hole = np.zeros((9, 9), bool)
    hole[4, 4] = True
    assert grown(hole, 2).sum() == 25
    assert grown(hole, 0) is hole
