"""Average precision: golden values, hand values, ties, empty classes."""

import numpy as np
import pytest

from cfmlc_jax import metrics

TIED = [3, 4, 5]  # classes whose scores tie in the golden file


def test_golden_sklearn(golden):
    z = golden("metrics.npz")
    ap = metrics.average_precision(z["scores"], z["targets"], "sklearn")
    np.testing.assert_allclose(100 * ap, z["ap_sklearn"], rtol=1e-12)
    np.testing.assert_allclose(
        metrics.mean_average_precision(z["scores"], z["targets"], "sklearn"), z["ap_sklearn"].mean()
    )


def test_golden_voc_where_no_ties_decide(golden):
    z = golden("metrics.npz")
    ap = metrics.average_precision(z["scores"], z["targets"], "voc")
    untied = [k for k in range(20) if k not in TIED]
    np.testing.assert_allclose(100 * ap[untied], z["ap_voc"][untied], rtol=1e-12)
    assert np.isnan(ap[7])


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_ties_do_not_depend_on_the_order_of_images(golden, rng, definition):
    z = golden("metrics.npz")
    order = rng.permutation(200)
    np.testing.assert_array_equal(
        metrics.average_precision(z["scores"][order], z["targets"][order], definition),
        metrics.average_precision(z["scores"], z["targets"], definition),
    )


def test_values_computed_by_hand():
    scores = np.array([[0.9], [0.8], [0.7], [0.6]])
    labels = np.array([[0], [1], [1], [0]])
    # precisions at the two hits: 1/2 and 2/3; the envelope lifts the first to 2/3.
    np.testing.assert_allclose(metrics.average_precision(scores, labels, "sklearn"), [(1 / 2 + 2 / 3) / 2])
    np.testing.assert_allclose(metrics.average_precision(scores, labels, "voc"), [2 / 3])


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_perfect_ranking_is_one_and_constant_scores_give_the_positive_rate(definition):
    labels = np.array([[1], [1], [0], [0], [0]])
    assert metrics.average_precision(labels.astype(float), labels, definition) == [1.0]
    np.testing.assert_allclose(metrics.average_precision(np.zeros((5, 1)), labels, definition), [0.4])


def test_a_class_without_positives():
    scores, labels = np.zeros((3, 2)), np.array([[1, 0], [0, 0], [0, 0]])
    assert metrics.average_precision(scores, labels, "sklearn")[1] == 0
    assert np.isnan(metrics.average_precision(scores, labels, "voc")[1])
    assert metrics.mean_average_precision(np.array([[1.0, 0], [0, 0], [0, 0]]), labels, "sklearn") == 50
    assert metrics.mean_average_precision(np.array([[1.0, 0], [0, 0], [0, 0]]), labels, "voc") == 100


@pytest.mark.parametrize(
    ("scores", "labels", "definition", "match"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "voc", "must both be"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "coco", "not one of"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), "voc", "4 scores are NaN"),
    ],
)
def test_invalid_inputs_are_refused(scores, labels, definition, match):
    with pytest.raises(ValueError, match=match):
        metrics.average_precision(scores, labels, definition)


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_a_weight_counts_an_image_so_many_times(rng, definition):
    scores, labels = rng.normal(size=(30, 3)).round(1), rng.random((30, 3)) < 0.4
    times = rng.integers(0, 4, 30)
    weighted = metrics.average_precision(scores, labels, definition, times)
    repeated = (np.repeat(array, times, axis=0) for array in (scores, labels))
    np.testing.assert_allclose(weighted, metrics.average_precision(*repeated, definition), rtol=1e-12)
    with pytest.raises(ValueError, match=r"weights \(29,\) must be \[n\]"):
        metrics.average_precision(scores, labels, definition, times[1:])
