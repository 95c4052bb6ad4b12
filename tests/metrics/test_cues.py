"""Shares with intervals, decisions about categories and about ImageNet-9, and the shape bias."""

import json
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.metrics import cues, imagenet_groups
from cfmlc_jax.metrics.imagenet_groups import CATEGORIES

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cgn" / "imagenet_eval.json").read_text())


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_groups_are_the_published_ones():
    assert GOLDEN["categories"] == CATEGORIES
    assert list(CATEGORIES) == sorted(CATEGORIES)
    assert imagenet_groups.to_in9().tolist() == GOLDEN["in_to_in9"]
    assert (imagenet_groups.to_in9() >= 0).sum() == 370


def test_decisions_are_the_reference_s():
    decided = cues.category_decisions(3 * np.random.RandomState(0).standard_normal((12, 1000)))
    assert [list(CATEGORIES)[i] for i in decided] == GOLDEN["decisions"]


def test_the_first_of_equal_categories_is_decided():
    logits = np.zeros((2, 1000))
    logits[:, [CATEGORIES["oven"][0], CATEGORIES["knife"][0]]] = 9
    logits[1, CATEGORIES["airplane"][0]] = 9
    assert cues.category_decisions(logits).tolist() == [13, 0]


def test_a_category_of_many_classes_is_decided_by_their_mean():
    logits = np.zeros((1, 1000))
    logits[0, CATEGORIES["dog"][0]] = 4  # of 109 dogs
    logits[0, CATEGORIES["oven"][0]] = 1
    assert list(CATEGORIES)[cues.category_decisions(logits)[0]] == "oven"


def test_large_logits_do_not_overflow():
    logits = np.full((1, 1000), -1e4)
    logits[0, CATEGORIES["cat"]] = 1e4
    assert list(CATEGORIES)[cues.category_decisions(logits)[0]] == "cat"


def test_correct_predictions_of_imagenet9_are_the_reference_s():
    logits = np.random.RandomState(1).standard_normal((1000, 1000)).astype(np.float32)
    classes = np.random.RandomState(2).randint(0, 9, 1000)
    decided = cues.in9_decisions(logits)
    assert (decided == classes).sum() == GOLDEN["correct"]
    assert decided.min() == -1
    nine = np.eye(9)[classes]
    np.testing.assert_array_equal(cues.in9_decisions(nine), classes)


@pytest.mark.parametrize("decide", [cues.category_decisions, cues.in9_decisions])
def test_other_numbers_of_classes_are_refused(decide):
    with pytest.raises(ValueError, match=r"\(2, 10\) are not \[n, 1000\]"):
        decide(np.zeros((2, 10)))


def test_shares_of_predictions_and_of_errors(generator):
    labels = np.array([[0, 1, 2], [1, 1, 2], [2, 0, 1], [0, 2, 2]])
    follows, errors = cues.cue_shares([0, 3, 1, 2], labels, generator=generator)
    np.testing.assert_allclose(follows.value, [25, 25, 50, 25])
    np.testing.assert_allclose(errors.value, [0, 100 / 3, 200 / 3, 100 / 3])
    assert (follows.low <= follows.value).all()
    assert (follows.value <= follows.high).all()


def test_an_interval_covers_what_the_normal_distribution_does(generator):
    right = np.arange(400)[:, None] < 100
    share = cues.shares(right, generator=generator)
    reach = 1.96 * np.sqrt(0.25 * 0.75 / 400) * 100
    np.testing.assert_allclose(
        [share.value[0], share.low[0], share.high[0]], [25, 25 - reach, 25 + reach], atol=0.5
    )


def test_shares_among_no_image_are_nan(generator):
    _, errors = cues.cue_shares([0, 1], np.array([[0, 1], [1, 1]]), generator=generator)
    assert np.isnan(errors).all()


def test_a_change_is_of_the_same_images(generator):
    before = np.arange(200) < 150
    same = cues.change(before, before, generator=generator)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    lost = cues.change(np.arange(200) < 50, before, generator=generator)
    assert lost.value == -50
    assert -60 < lost.low < -50 < lost.high < -40


def test_shape_bias_leaves_other_decisions_out(generator):
    shapes, textures = np.zeros(8, int), np.ones(8, int)
    bias = cues.shape_bias([0, 0, 0, 1, 5, 5, 5, 5], shapes, textures, generator=generator)
    assert bias.value == 75
    assert np.isnan(cues.shape_bias(np.full(8, 5), shapes, textures, generator=generator).value)
