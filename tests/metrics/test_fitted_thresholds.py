"""Thresholds that are fitted: hand values, what they promise on any scores, ties, saturated and missing scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax import metrics
from cfmlc_jax.metrics import fitted_thresholds

SCORES = np.array([[0.9], [0.8], [0.6], [0.5], [0.2]], np.float32)
LABELS = np.array([[1], [0], [1], [1], [0]], np.uint8)


def test_values_computed_by_hand():
    # F1 by number of predicted images: 2/4, 2/5, 4/6, 6/7, 6/8.
    np.testing.assert_array_equal(fitted_thresholds.best_f1(SCORES, LABELS), np.float32([0.35]))
    # Precision: 1, 1/2, 2/3, 3/4, 3/5.
    for least, threshold in ((1.0, 0.85), (0.75, 0.35), (0.76, 0.85), (0.6, 0.1)):
        np.testing.assert_allclose(
            fitted_thresholds.at_precision(SCORES, LABELS, least), [threshold], rtol=1e-6
        )
    for rate, threshold in ((0.4, 0.7), (0.5, 0.7), (0.55, 0.55), (0.0, 0.9), (0.09, 0.9), (1.0, 0.1)):
        np.testing.assert_allclose(fitted_thresholds.at_rates(SCORES, [rate]), [threshold], rtol=1e-6)


def test_a_precision_that_is_not_reached_predicts_nothing():
    labels = np.array([[0], [1], [0], [0], [0]], np.uint8)
    (threshold,) = fitted_thresholds.at_precision(SCORES, labels, 0.9)
    assert threshold == 1


def test_classes_without_positives_or_scores_have_no_threshold():
    scores = np.concatenate([SCORES, np.zeros_like(SCORES)], axis=1)
    for labels in (np.zeros((5, 2)), np.concatenate([0 * LABELS, LABELS], axis=1)):
        assert np.isnan(fitted_thresholds.best_f1(scores, labels)).all()
        assert np.isnan(fitted_thresholds.at_precision(scores, labels, 0.5)).all()


def test_neighbouring_and_saturated_scores_are_told_apart():
    one = np.float32(1)
    scores = np.array([[one], [np.nextafter(one, np.float32(0))], [0]], np.float32)
    labels = np.array([[1], [0], [0]])
    (threshold,) = fitted_thresholds.best_f1(scores, labels)
    np.testing.assert_array_equal(scores[:, 0] > threshold, [True, False, False])


GRID = st.integers(0, 8)


@given(
    st.lists(st.tuples(GRID, st.booleans()), min_size=1, max_size=12), st.integers(1, 8), st.integers(0, 8)
)
def test_no_other_threshold_keeps_the_promise_better(images, eighths, of_eight):
    scores = np.array([[s / 8] for s, _ in images], np.float32)
    labels = np.array([[int(label)] for _, label in images])
    candidates = np.append(np.unique(scores), np.float32(-0.0))
    measured = [metrics.thresholded(scores, labels, t) for t in candidates]
    (best,) = fitted_thresholds.best_f1(scores, labels)
    (reached,) = fitted_thresholds.at_precision(scores, labels, eighths / 8)
    if labels.any() and scores.any():
        f1 = metrics.thresholded(scores, labels, best)["OF1"]
        assert f1 == pytest.approx(np.nanmax([each["OF1"] for each in measured]))
        ours = metrics.thresholded(scores, labels, reached)
        good = [each["OR"] for each in measured if each["OP"] >= 100 * eighths / 8]
        assert np.isnan(ours["OP"]) or ours["OP"] >= 100 * eighths / 8
        assert ours["OR"] == max([*good, 0.0])
    (rate,) = fitted_thresholds.at_rates(scores, [of_eight / 8])
    wanted, n = of_eight / 8 * len(scores), len(scores)
    distance = abs((scores > rate).sum() - wanted)
    assert distance == min(abs((scores > t).sum() - wanted) for t in candidates), n
