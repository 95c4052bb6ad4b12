"""Decisions by rank and by class priors: golden values, hand values, ties, and rates that leave nothing."""

import numpy as np
import pytest

from cfmlc_jax import metrics


def test_golden_top_3(golden):
    z = golden("metrics.npz")
    chosen = metrics.top_k(z["scores"], 3)
    np.testing.assert_array_equal(chosen, z["top3"])
    values = metrics.precision_recall(chosen, z["targets"])
    np.testing.assert_allclose(list(values.values()), 100 * z["top3_metrics"], rtol=1e-12)


def test_golden_predictions_at_the_training_sets_rate(golden):
    z = golden("metrics.npz")
    chosen = metrics.at_rate(z["scores"], z["pos_ratio_train"])
    np.testing.assert_array_equal(chosen, z["at_rate_train"])
    values = metrics.precision_recall(chosen, z["targets"])
    np.testing.assert_allclose(list(values.values()), 100 * z["at_rate_train_metrics"], rtol=1e-12)


def test_a_rate_below_one_image_predicts_nothing(golden):
    """Two classes of the golden rates are that rare; there the reference predicts every image."""
    z = golden("metrics.npz")
    chosen = metrics.at_rate(z["scores"], z["pos_ratio_with_zero"])
    rare = z["pos_ratio_with_zero"] * 200 < 1
    assert rare.sum() == 2
    assert not chosen[:, rare].any()
    assert z["at_rate_with_zero"][:, rare].all()
    np.testing.assert_array_equal(chosen[:, ~rare], z["at_rate_with_zero"][:, ~rare])


def test_values_computed_by_hand():
    scores = np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.5], [0.3, 0.7, 0.5], [0.2, 0.1, 0.4]])
    # Of 4 images: 2.4, cut to 2; 1; and 1, with which two more tie.
    np.testing.assert_array_equal(
        metrics.at_rate(scores, [0.6, 0.25, 0.25]),
        np.array([[1, 0, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]], bool),
    )
    np.testing.assert_array_equal(
        metrics.top_k(scores, 1), np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], bool)
    )


def test_rates_of_none_and_of_all():
    scores = np.random.default_rng(0).random((5, 2))
    np.testing.assert_array_equal(metrics.at_rate(scores, [0, 1]), [[False, True]] * 5)


def test_ties_at_the_top_go_to_the_first_classes_and_few_classes_are_all_taken():
    np.testing.assert_array_equal(metrics.top_k(np.zeros((1, 4)), 2), [[True, True, False, False]])
    assert metrics.top_k(np.zeros((2, 2)), 3).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: metrics.top_k(np.zeros(3), 1), "must be"),
        (lambda: metrics.top_k(np.zeros((3, 3)), 0), "k at least 1"),
        (lambda: metrics.at_rate(np.zeros((3, 2)), [0.5]), r"\(3, 2\) and rates \(1,\)"),
        (lambda: metrics.at_rate(np.zeros((3, 2)), [0.5, 1.5]), "from 0.5 to 1.5 must be in"),
        (lambda: metrics.at_rate(np.zeros((3, 2)), [0.5, np.nan]), "must be in"),
    ],
)
def test_invalid_inputs_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
