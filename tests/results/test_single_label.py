"""Results of single-label images: accuracies, their intervals, tables; the rule of thumb for alpha."""

import json
import math

import numpy as np
import pytest

from cfmlc_jax.metrics import shots
from cfmlc_jax.metrics.rule_of_thumb import rule_of_thumb
from cfmlc_jax.results import single_label
from cfmlc_jax.results.json_types import FormatError
from cfmlc_jax.results.predictions import WHOLE, effect_of
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import WEIGHTS, RuleOfThumb

COUNTS = np.array([300, 200, 50, 5])
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def scores(rng):
    classes = rng.integers(0, 4, 200)
    labels = np.eye(4, dtype=np.uint8)[classes]
    factual = (rng.normal(size=(200, 4)) + labels).astype(np.float32)
    null = rng.normal(size=(200, 4)).astype(np.float32)
    return Scores({"whole": factual, "combined": factual, "null_feature": null}, labels)


def test_predictions_are_the_factual_one_and_effects(scores):
    actual = single_label.predictions(scores, (0.5, 2.0))
    assert [prediction.name for prediction in actual] == ["whole", "tde_feature_0.5", "tde_feature_2"]
    expected = scores.logits["whole"] - 2 * scores.logits["null_feature"]
    np.testing.assert_allclose(actual[effect_of("feature", 2)], expected, rtol=1e-6)


def test_accuracies_are_those_of_the_largest_logit(scores):
    labels = scores.labels.argmax(axis=1)
    actual = single_label.summarise(scores, (0.5,), COUNTS)[effect_of("feature", 0.5)]
    effect = scores.logits["combined"] - 0.5 * scores.logits["null_feature"]
    assert actual == shots.shots(effect.argmax(axis=1), labels, COUNTS)
    assert set(actual) == set(single_label.METRICS)


def test_numbers_of_training_images_may_be_unknown(scores):
    actual = single_label.summarise(scores, (), np.full(4, np.nan))[WHOLE]
    assert actual["top1"] > 0
    assert all(math.isnan(actual[group]) for group in shots.GROUPS)


def test_intervals_hold_the_values_and_a_gain_is_the_difference(scores):
    values = single_label.summarise(scores, (0.5,), COUNTS)
    actual = single_label.intervals(scores, (0.5,), COUNTS, np.random.default_rng(0))
    assert actual.resamples == 200
    assert set(actual.predictions) == set(values)
    for prediction, own in actual.predictions.items():
        for metric in single_label.MEASURED:
            low, high = own.metrics[metric]
            assert low < values[prediction][metric] < high
            gain, gain_low, gain_high = own.gains[metric]
            assert gain == pytest.approx(values[prediction][metric] - values[WHOLE][metric])
            assert gain_low <= gain <= gain_high
    assert actual.predictions[WHOLE].gains["top1"] == (0, 0, 0)


def test_width_of_an_interval(rng):
    """Of a share p of n images it is 2·1.96·√(p(1 − p)/n)."""
    n = 2000
    labels = np.zeros((n, 2), np.uint8)
    labels[:, 0] = 1
    logits = np.zeros((n, 2), np.float32)
    logits[: n // 4, 1] = 1
    actual = single_label.intervals(
        Scores({"whole": logits, "combined": logits}, labels), (), [1, 1], np.random.default_rng(0)
    )
    low, high = actual.predictions[WHOLE].metrics["top1"]
    assert high - low == pytest.approx(100 * 2 * 1.96 * math.sqrt(0.25 * 0.75 / n), rel=0.2)


def test_softmax(rng):
    logits = np.float32([[0, math.log(3)], [1000, 0]])
    np.testing.assert_allclose(single_label.probabilities(logits), [[0.25, 0.75], [1, 0]], rtol=1e-6)


def test_table_of_classes(scores):
    lines = single_label.per_class_csv(scores, (1.0,), COUNTS, NAMES).splitlines()
    assert lines[0] == "class,training_images,images,accuracy_whole,accuracy_tde_feature_1"
    name, count, images, accuracy, _ = lines[4].split(",")
    labels = scores.labels.argmax(axis=1)
    own = scores.logits["whole"][labels == 3].argmax(axis=1) == 3
    assert (name, count, int(images)) == ("d", "5", own.size)
    assert float(accuracy) == pytest.approx(100 * own.mean(), abs=1e-4)


def test_rule_of_thumb():
    assert rule_of_thumb(np.float32([0.5, 0.3])) == pytest.approx({"mean_cosine": 0.4, "alpha": 2.5})
    assert math.isnan(rule_of_thumb([0.5, -0.5])["alpha"])


def test_results_are_read_back(scores):
    alphas, generator = (0.5, 2.0), np.random.default_rng(0)
    measures = single_label.Measures(single_label.summarise(scores, alphas, COUNTS))
    findings = single_label.Findings(
        single_label.intervals(scores, alphas, COUNTS, generator), RuleOfThumb(0.5, 2.0)
    )
    results = single_label.SingleLabelResults(dict.fromkeys(WEIGHTS, measures), findings)
    fields = json.loads(json.dumps(results.to_json()))
    assert single_label.SingleLabelResults.from_json(fields, "val") == results
    assert fields["average"]["rule_of_thumb"] == {"mean_cosine": 0.5, "alpha": 2.0}
    assert fields["average"]["intervals"]["predictions"]["whole"]["gain_few"] == [0, 0, 0]
    del fields["weights"]["metrics"]["tde_feature_2"]["few"]
    with pytest.raises(FormatError, match=r"^val\.weights\.metrics\.tde_feature_2 has no 'few'$"):
        single_label.SingleLabelResults.from_json(fields, "val")
