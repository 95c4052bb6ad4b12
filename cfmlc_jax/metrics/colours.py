"""Distances between the pixel colours of two sets of images. They need no trained network."""

import numpy as np

from cfmlc_jax.shapes import shaped

# Bins of a histogram for each of red, green and blue.
BINS = 8


def moments(images) -> tuple[np.ndarray, np.ndarray]:
    """Mean [3] and covariance [3, 3] of the colours of all pixels, in levels of 0 to 255: uint8 [n, h, w, 3]."""
    pixels = np.asarray(images).reshape(-1, 3).astype(np.float64)
    return pixels.mean(axis=0), np.cov(pixels, rowvar=False, bias=True)


def frechet_distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Fréchet distance between the normal distributions of two means and covariances, in the unit of the means.

    The square root of |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½). FID is its square, for features of a trained network.
    """
    (m1, c1), (m2, c2) = one, other
    half = _square_root(c1)
    # tr (C₁ C₂)^½, by a symmetric matrix of the same eigenvalues.
    shared = np.trace(_square_root(half @ c2 @ half))
    squared = ((m1 - m2) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * shared
    return float(np.sqrt(max(squared, 0.0)))


def histogram(images) -> np.ndarray:
    """Share of the pixels in each of `BINS`³ equal boxes of colours: uint8 [n, h, w, 3] -> float64 [BINS³]."""
    steps = np.asarray(images).reshape(-1, 3).astype(np.int64) * BINS // 256
    places = steps @ np.array([BINS * BINS, BINS, 1])
    return np.bincount(places, minlength=BINS**3) / len(places)


@shaped("k, k")
def total_variation(one, other) -> float:
    """Half the sum of absolute differences of two distributions, 0 (equal) to 1 (disjoint): two [k] -> float."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).sum() / 2)


def distances(images, others) -> dict[str, float]:
    """Distances of the colours of two sets of images, uint8 [n, h, w, 3] and [m, h, w, 3].

    - colour_mean: distance of the mean colours, levels of 0 to 255;
    - colour_frechet: `frechet_distance` of means and covariances, levels;
    - colour_histogram: `total_variation` of the histograms, percent.
    """
    one, other = moments(images), moments(others)
    return {
        "colour_mean": float(np.linalg.norm(one[0] - other[0])),
        "colour_frechet": frechet_distance(one, other),
        "colour_histogram": 100 * total_variation(histogram(images), histogram(others)),
    }


def _square_root(matrix):
    """The square root of a symmetric matrix without negative eigenvalues; rounding may have made some."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
