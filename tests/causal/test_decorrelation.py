"""Weights that decorrelate labels: bounds, optimality, and that labels that say nothing change nothing."""

import itertools

import numpy as np
import pytest
from scipy import optimize

from cfmlc_jax.causal.decorrelation import decorrelate
from cfmlc_jax.errors import InputError


def paired(bias, n=4000, pairs=3):
    """Labels of pairs of classes, of which the second follows the first with a probability."""
    generator = np.random.default_rng(0)
    first = generator.random((n, pairs)) < 0.3
    second = np.where(generator.random((n, pairs)) < bias, first, generator.random((n, pairs)) < 0.3)
    return np.stack([first, second], axis=-1).reshape(n, 2 * pairs).astype(np.uint8)


def correlations(labels, weights):
    weights = weights / weights.sum()
    centred = labels - weights @ labels
    covariance = (centred * weights[:, None]).T @ centred
    deviation = np.sqrt(np.diag(covariance))
    return (covariance / np.outer(deviation, deviation))[np.triu_indices(labels.shape[1], 1)]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_the_bound_is_kept_and_used(share):
    labels = paired(0.95)
    result = decorrelate(labels, share)
    weights = result.weights
    assert weights.shape == (len(labels),)
    assert weights.min() >= 0
    assert weights.mean() == pytest.approx(1)
    effective = weights.sum() ** 2 / (weights**2).sum() / len(labels)
    assert effective == pytest.approx(result.effective_share)
    assert share <= effective < share + 0.02
    before, after = (np.sqrt(np.mean(correlations(labels, w) ** 2)) for w in (np.ones(len(labels)), weights))
    assert result.correlation == pytest.approx((before, after))
    assert after < before


def test_a_lower_bound_decorrelates_more_and_enough_is_enough():
    labels = paired(0.8)
    reached = [decorrelate(labels, share) for share in (0.9, 0.6, 0.1, 0.01)]
    after = [result.correlation[1] for result in reached]
    assert after[0] > after[1] > after[2]
    assert after[3] == after[2] < len(labels) ** -0.5
    assert reached[3].effective_share > 0.15  # fewer effective images would bring nothing
    # Frequencies stay nearly the same.
    np.testing.assert_allclose((reached[2].weights[:, None] * labels).mean(0), labels.mean(0), atol=0.02)


def test_images_with_one_of_a_pair_are_raised():
    labels = paired(0.95)
    weights = decorrelate(labels, 0.5).weights
    alone = (labels[:, 0::2] != labels[:, 1::2]).any(axis=1)
    assert weights[alone].mean() > 3 * weights[~alone].mean()
    for row in range(20):  # equal labels, equal weights
        same = (labels == labels[row]).all(axis=1)
        assert np.ptp(weights[same]) == 0


def test_weights_solve_the_stated_problem():
    """Against a general solver, of the problem with its λ; labels of three classes are of eight kinds."""
    kinds = np.array(list(itertools.product((0, 1), repeat=3)))
    counts = np.array([300, 20, 30, 200, 10, 60, 5, 150])
    labels = kinds.repeat(counts, axis=0)
    ours = decorrelate(labels, 0.6)
    share = counts / counts.sum()
    frequency = share @ kinds
    z = (kinds - frequency) / np.sqrt(frequency * (1 - frequency))
    features = np.concatenate([z, z[:, [0, 0, 1]] * z[:, [1, 2, 2]]], axis=1)

    def squares(w):
        return ((share * w) @ features) ** 2

    # Of all weights with this effective sample size, ours have the least squares: they are those of its λ.
    own = ours.weights[np.cumsum(counts) - 1]
    limit = share @ own**2
    solution = optimize.minimize(
        lambda w: squares(w).sum(),
        np.ones(8),
        bounds=[(0, None)] * 8,
        constraints=[
            {"type": "eq", "fun": lambda w: share @ w - 1},
            {"type": "ineq", "fun": lambda w: limit - share @ w**2},
        ],
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert solution.success
    assert squares(own).sum() == pytest.approx(solution.fun, rel=1e-3)
    np.testing.assert_allclose(own, solution.x, atol=5e-3)


def test_labels_without_pairs_have_equal_weights():
    generator = np.random.default_rng(1)
    one = (generator.random((50, 1)) < 0.5).astype(np.uint8)
    assert (decorrelate(one, 0.5).weights == 1).all()
    constant = np.concatenate([one, np.ones_like(one), np.zeros_like(one)], axis=1)
    result = decorrelate(constant, 0.5)
    assert (result.weights == 1).all()
    assert np.isnan(result.correlation).all()
    assert (decorrelate(paired(0.9), 1.0).weights == 1).all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match=r"effective_share .* must be above 0 and at most 1"):
        decorrelate(paired(0.9, n=10), share)


def test_no_image_is_refused():
    with pytest.raises(InputError, match="no image to weight"):
        decorrelate(np.zeros((0, 3)), 0.5)


def test_labels_that_no_weights_can_separate():
    """Twelve images of six kinds, of which two classes are never apart."""
    rows = [[1, 1, 0, 1], [1, 1, 0, 1], [1, 1, 0, 1], [1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 1, 0]]
    found = decorrelate(np.array(rows * 2), 0.3)
    assert np.isfinite(found.weights).all()
    assert found.effective_share >= 0.3
