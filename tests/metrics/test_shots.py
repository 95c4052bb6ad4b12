"""Accuracy by shots: the reference's values, a hand-computed example, what is undefined."""

import numpy as np
import pytest

from cfmlc_jax.metrics import shots

COUNTS = np.array([101, 100, 20, 19])


def test_golden(golden):
    z = golden("longtail/shots.npz")
    accuracies = shots.shots(z["predicted"], z["labels"], z["counts"])
    np.testing.assert_allclose(
        [accuracies["many"], accuracies["medium"], accuracies["few"]], 100 * z["groups"], rtol=1e-12
    )
    np.testing.assert_allclose(accuracies["top1"], 100 * z["overall"], rtol=1e-12)
    np.testing.assert_array_equal(
        shots.per_class_accuracy(z["predicted"], z["labels"], len(z["counts"])), z["per_class"]
    )


def test_golden_with_classes_that_have_no_images(golden):
    z = golden("longtail/shots.npz")
    some = z["labels"] < 15
    accuracies = shots.shots(z["predicted"][some], z["labels"][some], z["counts"])
    expected = 100 * z["groups_of_15"]
    np.testing.assert_allclose(
        [accuracies["many"], accuracies["medium"], accuracies["few"]], expected, rtol=1e-12
    )


def test_values_computed_by_hand():
    # Class 0 one of two, class 1 and 2 all, class 3 never: 100 and 20 images are medium.
    predicted, labels = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 3])
    accuracies = shots.shots(predicted, labels, COUNTS)
    f1 = [2 / 3, 2 / 3, 2 / 3, 0]
    expected = {"top1": 60, "many": 50, "medium": 100, "few": 0, "macro_F1": 100 * np.mean(f1)}
    assert list(accuracies) == list(expected)
    np.testing.assert_allclose(list(accuracies.values()), list(expected.values()), rtol=1e-12)


def test_thresholds():
    predicted, labels = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2])
    accuracies = shots.shots(predicted, labels, COUNTS, many=50, few=10)
    assert (accuracies["many"], accuracies["medium"]) == (75, 100)


def test_an_empty_group_is_undefined_or_the_references_zero():
    labels = np.array([0, 1])
    assert np.isnan(shots.shots(labels, labels, COUNTS)["few"])
    assert shots.shots(labels, labels, COUNTS, empty=0.0)["few"] == 0


def test_macro_f1_is_of_classes_labelled_or_predicted():
    # Class 1 is predicted and never right, class 3 neither labelled nor predicted.
    accuracies = shots.shots(np.array([0, 1, 2]), np.array([0, 0, 2]), COUNTS)
    np.testing.assert_allclose(accuracies["macro_F1"], 100 * (2 / 3 + 0 + 1) / 3, rtol=1e-12)


def test_a_class_without_images_has_no_accuracy():
    accuracy = shots.per_class_accuracy(np.array([0, 2]), np.array([0, 0]), 3)
    np.testing.assert_array_equal(accuracy, [0.5, np.nan, np.nan])
    assert accuracy.dtype == np.float64


@pytest.mark.parametrize(
    ("predicted", "labels", "match"),
    [
        ([0, 1], [0], "must both be"),
        ([], [], "must both be"),
        ([0.0], [0], "predictions of type float64 are not indices"),
        ([0], [4], "labels from 4 to 4 with 4 classes"),
        ([-1], [0], "predictions from -1 to -1 with 4 classes"),
    ],
)
def test_invalid_arguments_are_refused(predicted, labels, match):
    with pytest.raises(ValueError, match=match):
        shots.shots(predicted, labels, COUNTS)


def test_overlapping_groups():
    with pytest.raises(ValueError, match="overlap"):
        shots.shots([0], [0], COUNTS, many=5, few=20)
