"""Co-occurrence and leaning on it: hand values, predictors that ignore or follow context, brute force."""

import itertools

import numpy as np
import pytest

from cfmlc_jax.metrics import cooccurrence

# Four images of three classes; class 2 never occurs.
LABELS = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
# Every pair of labels of two classes, five times for each of four levels of the first class's score.
EVERY = np.repeat(np.array(list(itertools.product((0, 1), (0, 1), (0.2, 0.4, 0.6, 0.8)))), 5, axis=0)


def random_split(rng, images=40, classes=4):
    scores = rng.integers(0, 6, (images, classes)).astype(float)
    return scores, (rng.random((images, classes)) < 0.4).astype(np.uint8)


def test_hand_values_of_labels():
    np.testing.assert_array_equal(cooccurrence.counts(LABELS), [[3, 2, 0], [2, 2, 0], [0, 0, 0]])
    nan = np.nan
    np.testing.assert_allclose(
        cooccurrence.conditional_probability(LABELS), [[1, 1, nan], [2 / 3, 1, nan], [0, 0, nan]]
    )
    np.testing.assert_allclose(
        cooccurrence.added_value(LABELS), [[0.25, 0.25, nan], [1 / 6, 0.5, nan], [0, 0, nan]]
    )


def test_independent_labels_have_no_added_value():
    labels = np.array(list(itertools.product((0, 1), repeat=3)))
    off_diagonal = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(cooccurrence.added_value(labels)[off_diagonal], 0)
    assert cooccurrence.strongest_pairs(labels, 6, min_images=1).shape == (0, 2)


def test_strongest_pairs_by_strength_then_index_with_enough_images():
    pairs = cooccurrence.strongest_pairs(LABELS, 9, min_images=1)
    assert pairs.tolist() == [[0, 1], [1, 0]]
    assert cooccurrence.strongest_pairs(LABELS, 1, min_images=1).tolist() == [[0, 1]]
    assert cooccurrence.strongest_pairs(LABELS, 9, min_images=3).tolist() == []
    # Two pairs of equal strength, four ordered ones: the lower class index first.
    twins = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    actual = cooccurrence.strongest_pairs(twins, 4, min_images=1)
    assert actual.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]


def test_hand_values_of_rates():
    labels = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1], [0, 0], [0, 0]])
    predicted = np.array([[1, 1], [0, 1], [0, 0], [1, 1], [1, 1], [1, 0], [0, 0]])
    positive = cooccurrence.true_positive_rates(predicted, labels, 0.5)
    negative = cooccurrence.false_positive_rates(predicted, labels, 0.5)
    # Target 0 beside class 1: found in one of two, alone in none of one; wrong in both of two, one of two.
    assert positive.with_context[0, 1] == 0.5
    assert positive.without_context[0, 1] == 0
    assert positive.overall[0] == pytest.approx(1 / 3)
    assert negative.with_context[0, 1] == 1
    assert negative.without_context[0, 1] == 0.5
    assert negative.overall[0] == 0.75
    assert negative.excess[0, 1] == 0.5
    assert negative.undefined == positive.undefined == 0
    assert np.isnan(negative.excess.diagonal()).all()


def test_unconditional_rates_dilute_the_contrast_by_the_share_of_context(rng):
    scores, labels = random_split(rng)
    actual = cooccurrence.false_positive_rates(scores, labels, 2.5)
    absent = labels == 0
    share = (absent.T.astype(float) @ labels) / absent.sum(axis=0)[:, None]
    np.testing.assert_allclose(
        actual.with_context - actual.overall[:, None], (1 - share) * actual.excess, atol=1e-12
    )


def test_pairs_without_images_are_nan_and_counted():
    actual = cooccurrence.false_positive_rates(LABELS.astype(float), LABELS, 0.5)
    # Absent 0 never stands beside 1, nothing ever beside 2; absent 2 stands beside 0 and 1, and alone.
    assert np.isnan(actual.excess).tolist() == [[True, True, True], [False, True, True], [False, False, True]]
    assert actual.undefined == 3
    assert np.isnan(cooccurrence.context_auc(LABELS.astype(float), LABELS)[0, 1])


def test_a_prediction_that_ignores_context_has_no_excess():
    labels, scores = EVERY[:, :2], np.stack([EVERY[:, 2], EVERY[:, 1]], axis=1)
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert cooccurrence.false_positive_rates(scores, labels, threshold).excess[0, 1] == 0
        assert cooccurrence.true_positive_rates(scores, labels, threshold).excess[0, 1] == 0
        summary = cooccurrence.mean_excess_false_positive_rate(
            scores, labels, threshold, [[0, 1]], generator=np.random.default_rng(0), resamples=200
        )
        assert summary.excess.value == 0
        assert summary.excess.low <= 0 <= summary.excess.high
    assert cooccurrence.context_auc(scores, labels)[0, 1] == 0.5


def test_a_prediction_that_is_the_context_has_all_the_excess():
    labels = EVERY[:, :2]
    scores = labels[:, ::-1]
    assert cooccurrence.false_positive_rates(scores, labels, 0.5).excess[0, 1] == 1
    assert cooccurrence.context_auc(scores, labels)[0, 1] == 1
    summary = cooccurrence.mean_excess_false_positive_rate(
        scores, labels, 0.5, [[0, 1], [1, 0]], generator=np.random.default_rng(0), resamples=50
    )
    assert summary.excess == (1, 1, 1)
    assert (summary.pairs, summary.undefined) == (2, 0)


def test_context_auc_against_counting_pairs_of_images(rng):
    scores, labels = random_split(rng)
    actual = cooccurrence.context_auc(scores, labels)
    for j, i in itertools.permutations(range(4), 2):
        beside = scores[(labels[:, j] == 0) & (labels[:, i] == 1), j]
        alone = scores[(labels[:, j] == 0) & (labels[:, i] == 0), j]
        wins = (beside[:, None] > alone) + 0.5 * (beside[:, None] == alone)
        assert actual[j, i] == pytest.approx(wins.mean(), rel=1e-12)


def test_context_auc_depends_on_ranks_only_and_is_reversed_by_negation(rng):
    scores, labels = random_split(rng)
    actual = cooccurrence.context_auc(scores, labels)
    np.testing.assert_allclose(cooccurrence.context_auc(np.exp(scores), labels), actual, rtol=1e-12)
    np.testing.assert_allclose(cooccurrence.context_auc(-scores, labels), 1 - actual, rtol=1e-12)
    assert np.nanmin(actual) >= 0
    assert np.nanmax(actual) <= 1


def test_the_order_of_images_does_not_matter(rng):
    scores, labels = random_split(rng)
    order = rng.permutation(len(labels))
    for measure in (cooccurrence.context_auc, lambda s, y: cooccurrence.false_positive_rates(s, y, 2).excess):
        np.testing.assert_allclose(measure(scores[order], labels[order]), measure(scores, labels), rtol=1e-12)


def test_the_summary_is_the_mean_of_the_defined_pairs(rng):
    scores, labels = random_split(rng)
    labels[:, 3] = 1  # never absent: undefined as a target
    pairs = np.array([[0, 1], [2, 0], [3, 1]])
    summary = cooccurrence.mean_excess_false_positive_rate(
        scores, labels, 2.5, pairs, generator=np.random.default_rng(0), resamples=300
    )
    cells = cooccurrence.false_positive_rates(scores, labels, 2.5).excess
    assert summary.excess.value == pytest.approx((cells[0, 1] + cells[2, 0]) / 2, rel=1e-12)
    assert summary.excess.low < summary.excess.value < summary.excess.high
    assert (summary.pairs, summary.undefined) == (2, 1)


def test_without_pairs_there_is_no_summary():
    pairs = cooccurrence.strongest_pairs(LABELS, 5, min_images=10)
    summary = cooccurrence.mean_excess_false_positive_rate(
        LABELS, LABELS, 0.5, pairs, generator=np.random.default_rng(0), resamples=5
    )
    assert np.isnan(summary.excess).all()
    assert (summary.pairs, summary.undefined) == (0, 0)


def test_a_threshold_of_each_class_and_the_scores_own_precision():
    labels = np.array([[0, 1], [0, 0]])
    scores = np.array([[0.6, 0.1], [0.6, 0.1]], np.float32)
    actual = cooccurrence.false_positive_rates(scores, labels, np.array([0.7, 0.5])).overall
    np.testing.assert_array_equal(actual, [0, 0])
    # 0.6 in float32 is above 0.6 in float64, and not above itself.
    assert cooccurrence.false_positive_rates(scores, labels, 0.6).overall[0] == 0


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "must both be"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), "4 scores are NaN"),
        (np.zeros(2), np.zeros(2), "must be \\[n, k\\]"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "at least one image"),
    ],
)
def test_invalid_inputs_are_refused(scores, labels, match):
    with pytest.raises(ValueError, match=match):
        cooccurrence.context_auc(scores, labels)
    with pytest.raises(ValueError, match=match):
        cooccurrence.true_positive_rates(scores, labels, 0.5)


@pytest.mark.parametrize(
    ("pairs", "match"),
    [([0, 1], "must be \\[m, 2\\]"), ([[1, 1]], "two different"), ([[0, 3]], "below 3"), ([[-1, 0]], "-1")],
)
def test_invalid_pairs_are_refused(pairs, match):
    with pytest.raises(ValueError, match=match):
        cooccurrence.mean_excess_false_positive_rate(
            LABELS, LABELS, 0.5, pairs, generator=np.random.default_rng(0)
        )


def test_asking_for_no_pairs_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        cooccurrence.strongest_pairs(LABELS, 0)
