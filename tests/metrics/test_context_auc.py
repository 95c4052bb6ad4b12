"""The threshold-free number of leaning on context."""

import numpy as np
import pytest

from cfmlc_jax.metrics import context_auc, cooccurrence

PAIRS = np.array([[2, 0], [0, 1], [2, 1], [1, 2]])


@pytest.fixture
def scored(rng):
    labels = (rng.random((60, 3)) < 0.4).astype(np.uint8)
    # Coarse, so that there are ties.
    return np.round(rng.normal(size=(60, 3)) + labels[:, [1, 2, 0]], 1), labels


def test_equal_weights_give_the_plain_statistic(scored):
    scores, labels = scored
    auc = context_auc.weighted_context_auc(scores, labels, PAIRS)(np.ones((1, 60)))
    np.testing.assert_allclose(auc[0], cooccurrence.context_auc(scores, labels)[tuple(PAIRS.T)], rtol=1e-12)


def test_unknown_labels_are_left_out_pair_by_pair(scored, rng):
    scores, labels = scored
    partial = np.where(rng.random((60, 3)) < [0.0, 0.3, 0.3], -1, labels.astype(np.int8))
    auc = context_auc.weighted_context_auc(scores, partial, PAIRS)(np.ones((1, 60)))
    for (target, context), value in zip(PAIRS, auc[0], strict=True):
        known = (partial[:, [target, context]] >= 0).all(axis=1)
        plain = cooccurrence.context_auc(scores[known], labels[known])
        assert value == pytest.approx(plain[target, context], rel=1e-12)


def test_an_integer_weight_equals_that_many_copies(scored, rng):
    scores, labels = scored
    copies = rng.integers(0, 3, 60)
    auc = context_auc.weighted_context_auc(scores, labels, PAIRS)(copies[None].astype(float))
    repeated = cooccurrence.context_auc(np.repeat(scores, copies, axis=0), np.repeat(labels, copies, axis=0))
    np.testing.assert_allclose(auc[0], repeated[tuple(PAIRS.T)], rtol=1e-12)


def test_scores_that_are_the_context_and_scores_that_ignore_it():
    labels = np.array([[0, 1], [0, 1], [0, 0], [1, 0]])
    scores = np.array([[5.0, 0], [5, 0], [1, 0], [9, 0]])
    both = context_auc.weighted_context_auc(scores, labels, [[0, 1], [1, 0]])(np.ones((1, 4)))
    # The second class's scores are all tied.
    assert both.tolist() == [[1.0, 0.5]]


def test_the_interval_contains_the_mean_and_ignores_undefined_pairs(scored, rng):
    scores, labels = scored
    plain = cooccurrence.context_auc(scores, labels)[tuple(PAIRS.T)].mean()
    value, low, high = context_auc.mean_context_auc(scores, labels, PAIRS, generator=rng, resamples=50)
    assert value == pytest.approx(plain)
    assert low < value < high
    everywhere = np.concatenate([labels, np.ones((60, 1), np.uint8)], axis=1)
    wider = np.concatenate([scores, scores[:, :1]], axis=1)
    auc = context_auc.weighted_context_auc(wider, everywhere, [[0, 3], [3, 0], [0, 1]])(np.ones((1, 60)))
    assert np.isnan(auc[0]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("scores", "pairs", "message"),
    [
        (np.zeros((3, 2)), PAIRS, "must both be"),
        (np.full((2, 2), np.nan), PAIRS, "4 scores are NaN"),
        (np.zeros((2, 2)), [0, 1], "must be \\[m, 2\\]"),
    ],
)
def test_invalid_arguments_are_refused(scores, pairs, message):
    with pytest.raises(ValueError, match=message):
        context_auc.weighted_context_auc(scores, np.eye(2), pairs)
