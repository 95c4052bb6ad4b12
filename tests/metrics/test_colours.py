"""Distances of colours."""

import numpy as np
import pytest

from cfmlc_jax.metrics import colours


def test_frechet_distance_of_known_normals():
    mean, covariance = np.array([1.0, 2.0, 2.0]), np.diag([4.0, 9.0, 1.0])
    zero = np.zeros(3)
    assert colours.frechet_distance((zero, covariance), (mean, covariance)) == pytest.approx(3)
    assert colours.frechet_distance((zero, covariance), (zero, np.diag([1.0, 1.0, 1.0]))) == pytest.approx(
        5**0.5
    )
    # Rotations that turn both alike change nothing; the product of both is then not symmetric in general.
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    one, other = turn @ covariance @ turn.T, turn @ np.diag([1.0, 16.0, 0.0]) @ turn.T
    assert colours.frechet_distance((zero, one), (turn @ mean, other)) == pytest.approx(
        (9 + 1 + 1 + 1) ** 0.5
    )


def test_moments_and_histogram_of_images():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[1] = [[[255, 0, 0], [255, 0, 31]]]
    mean, covariance = colours.moments(images)
    np.testing.assert_allclose(mean, [127.5, 0, 7.75])
    np.testing.assert_allclose(covariance, np.cov(images.reshape(-1, 3).T, bias=True))
    shares = colours.histogram(images)
    assert shares[0] == 0.5
    assert shares[7 * 64] == 0.5
    assert shares.sum() == 1


def test_distances_are_zero_of_equal_and_full_of_disjoint_images():
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((3, 2, 2, 3), 255, np.uint8)
    assert colours.distances(black, black) == {"colour_mean": 0, "colour_frechet": 0, "colour_histogram": 0}
    apart = colours.distances(black, white)
    assert apart["colour_histogram"] == 100
    assert apart["colour_mean"] == apart["colour_frechet"] == pytest.approx(255 * 3**0.5)


def test_distributions_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="total_variation"):
        colours.total_variation([0.5, 0.5], [1.0])
