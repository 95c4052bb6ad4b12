"""Precision, recall and F1: golden values and a hand-computed example."""

import numpy as np

from cfmlc_jax import metrics


def test_golden_sweep(golden):
    z = golden("metrics.npz")
    assert tuple(z["thresholds"]) == metrics.THRESHOLDS
    for threshold, expected in zip(z["thresholds"], z["thresholded"], strict=True):
        values = metrics.thresholded(z["scores"], z["targets"], threshold)
        assert list(values) == ["CP", "CR", "CF1", "OP", "OR", "OF1"]
        np.testing.assert_allclose(list(values.values()), 100 * expected, rtol=1e-12)


def test_values_computed_by_hand():
    scores = np.array([[0.9, 0.2], [0.8, 0.3], [0.1, 0.5]])
    labels = np.array([[1, 0], [0, 0], [1, 1]])
    values = metrics.thresholded(scores, labels, 0.5)
    # class 0: one hit of two predictions and two positives; class 1 is never predicted (0.5 is not > 0.5).
    np.testing.assert_allclose(list(values.values()), [50, 25, 100 / 3, 50, 100 / 3, 40])


def test_threshold_per_class_and_nothing_predicted():
    scores = np.array([[0.6, 0.6]])
    labels = np.array([[1, 1]])
    assert metrics.thresholded(scores, labels, np.array([0.5, 0.7]))["CR"] == 50
    nothing = metrics.thresholded(scores, labels, 0.9)
    assert np.isnan(nothing["CP"])
    assert np.isnan(nothing["OP"])
    assert nothing["CR"] == 0
