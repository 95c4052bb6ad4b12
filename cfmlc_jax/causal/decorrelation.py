"""Weights of training images that make labels as independent of each other as the images allow.

Where a fork lies beside a plate in 94 of 100 pictures, only the other six tell forks from plates. Their weights are
raised, from labels alone, until pairs of labels are uncorrelated (but for chance) or a bound on the effective sample size is reached:
the images' number times (mean weight)² / mean squared weight (Kish, 1965).

With standardised labels z of an image (mean 0, deviation 1 over the images) and its features φ, which are all z_a and
all products z_a·z_b of two classes, the weights solve the convex problem

    minimise  ‖mean(w·φ)‖² + λ·mean((w − 1)²)   subject to  w ≥ 0,  mean(w) = 1.

mean(w·φ) holds the correlation of each pair and the change of each class's frequency, so frequencies are kept. The
dual has one variable for each feature, and w = max(0, 1 + τ + φ·θ); λ falls until the bound is reached.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize

from cfmlc_jax.errors import InputError

# λ of the bound is searched between these, by a factor that becomes smaller. The features' scale is 1.
_STRONGEST, _WEAKEST = 1e-6, 30.0
_FACTOR, _SMALLEST_FACTOR = 4.0, 1.01
_SHARE_ERROR = 0.005  # of the effective sample size, at which the search ends
# Relative change of the dual's value at which a solution is taken.
_TOLERANCE = 1e-9


class Decorrelation(NamedTuple):
    """Weights of images, and what they reach.

    weights: float64 [n], mean 1, none below 0.
    effective_share: effective sample size / n, from 0 to 1.
    correlation: root mean square of the correlations of all pairs of labels, before and after weighting.
    """

    weights: np.ndarray
    effective_share: float
    correlation: tuple[float, float]

    def summary(self) -> str:
        """What the weights do, in one line."""
        before, after = self.correlation
        return (
            f"images are drawn with weights from {self.weights.min():.2f} to {self.weights.max():.2f}: correlation of labels "
            f"{before:.3f} -> {after:.3f}, effective sample size {self.effective_share:.0%} of the images"
        )


def decorrelate(labels: np.ndarray, effective_share: float) -> Decorrelation:
    """The weights that decorrelate labels most at a given effective sample size, or above it if less suffices.

    Args:
        labels: 0 or 1, [n, k]; classes that no image or every image has are left out. −1, unknown: a class is as
            frequent as among the images of which it is known, and an unknown entry has z = 0, its expectation.
        effective_share: the least effective sample size / n, above 0; 1: all weights are 1.

    Raises:
        InputError: a share outside (0, 1], or no image.
    """
    if not 0 < effective_share <= 1:
        raise InputError(f"effective_share {effective_share} must be above 0 and at most 1")
    if not len(labels):
        raise InputError("there is no image to weight")
    signs = np.where(np.asarray(labels) < 0, np.int8(-1), np.asarray(labels) > 0)
    rows, kinds, counts = np.unique(signs, axis=0, return_inverse=True, return_counts=True)
    kinds, unknown = kinds.reshape(-1), rows < 0
    share = counts / len(labels)
    frequency = share @ (rows > 0)
    if unknown.any():
        frequency = frequency / np.maximum(share @ ~unknown, np.finfo(float).tiny)
    varying = (frequency > 0) & (frequency < 1)
    frequency = frequency[varying]
    z = (rows[:, varying] - frequency) / np.sqrt(frequency * (1 - frequency))
    z[unknown[:, varying]] = 0
    weights = _bounded(z, share, effective_share, len(labels) ** -0.5)
    return Decorrelation(
        weights[kinds], _effective(weights, share), (_rms(z, share), _rms(z, share * weights))
    )


def _bounded(z, share, bound, chance):
    """Weights [m] of the kinds of images, whose effective share is at least the bound.

    chance: the correlation that independent labels have by chance; less is not sought.
    """
    best = np.ones(len(z))
    if bound == 1 or z.shape[1] < 2:
        return best
    solve = _solver(z, share)
    # Downwards, because each solution starts from the last one and small λ alone take long.
    strength, step = _WEAKEST, _FACTOR
    while strength > _STRONGEST:
        weights = solve(strength / step)
        reached = 0.0 if weights is None else _effective(weights, share)
        if weights is not None and reached >= bound:
            best, strength = weights, strength / step
            if reached < bound + _SHARE_ERROR or _rms(z, share * weights) < chance:
                break
        elif step < _SMALLEST_FACTOR:
            break
        else:
            step **= 0.5
    return best


def _solver(z, share) -> Callable[[float], np.ndarray | None]:
    """λ -> the weights [m]; each solution starts from the last one. None if all would be 0.

    That happens at λ near 0, if no weights can separate the labels of a few images.
    """
    k = z.shape[1]
    upper = np.triu_indices(k, 1)
    start = np.zeros(1 + k + len(upper[0]))

    def scores(dual):
        pairs = np.zeros((k, k))
        pairs[upper] = dual[1 + k :]
        return 1 + dual[0] + z @ dual[1 : 1 + k] + np.einsum("nk,nk->n", z @ pairs, z)

    def value(dual, strength):
        """The dual's value and gradient."""
        weights = np.maximum(scores(dual), 0)
        weighted = share * weights
        pairs = (z * weighted[:, None]).T @ z
        means = np.concatenate([[weighted.sum() - 1], weighted @ z, pairs[upper]])
        theta = np.concatenate([[0], dual[1:]])
        result = strength / 2 * theta @ theta + weighted @ weights / 2 - dual[0]
        return result, strength * theta + means

    def solve(strength):
        nonlocal start
        solution = optimize.minimize(
            value, start, (strength,), "L-BFGS-B", jac=True, options={"ftol": _TOLERANCE, "maxiter": 500}
        )
        weights = np.maximum(scores(solution.x), 0)
        total = share @ weights
        if not total > 0:
            return None
        start = solution.x
        return weights / total

    return solve


def _effective(weights, share):
    return float((share @ weights) ** 2 / (share @ weights**2))


def _rms(z, weighted):
    """Root mean square of the weighted correlations of all pairs of classes that vary; NaN for fewer than two."""
    weighted = weighted / weighted.sum()
    mean = weighted @ z
    covariance = (z * weighted[:, None]).T @ z - np.outer(mean, mean)
    variance = np.diag(covariance)
    varying = variance > 1e-12  # weights of 0 may leave a class in all images that count, or in none
    deviation = np.sqrt(variance[varying])
    correlation = covariance[np.ix_(varying, varying)] / np.outer(deviation, deviation)
    pairs = correlation[np.triu_indices(len(deviation), 1)]
    return float(np.sqrt(np.mean(pairs**2))) if len(pairs) else float("nan")
