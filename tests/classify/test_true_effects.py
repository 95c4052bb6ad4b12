"""True effects of objects, from scenes without one digit, and estimates in the same order."""

import numpy as np
import pytest

from cfmlc_jax.classify import true_effects
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.results.predictions import effect_of
from cfmlc_jax.results.scores import Scores


@pytest.fixture(scope="module")
def scenes():
    return Scenes("test_balanced", num_scenes=12)


def test_every_object_is_taken_out_once(scenes):
    removals = true_effects.ScenesWithoutOne(scenes)
    assert len(removals) == len(removals.ids) == scenes.labels.sum()
    assert len(set(removals.ids)) == len(removals)
    for i in range(len(removals)):
        scene, digit = removals.owner[i], removals.digit[i]
        assert scenes.labels[scene, digit] == 1
        expected = scenes.labels[scene].copy()
        expected[digit] = 0
        np.testing.assert_array_equal(removals.labels[i], expected)
        record = removals[i]
        np.testing.assert_array_equal(record["labels"], expected)
        position = [item.digit for item in scenes.objects(scene)].index(digit)
        np.testing.assert_array_equal(record["image"], scenes.render(scene, without=position))
    assert repr(removals) == f"ScenesWithoutOne({scenes!r})"


def test_effects_by_hand(scenes, rng):
    removals = true_effects.ScenesWithoutOne(scenes)
    n, m, k = len(scenes), len(removals), 10
    factual, null = rng.normal(size=(2, n, k)).astype(np.float32)
    gone = rng.normal(size=(m, k)).astype(np.float32)
    objects = true_effects.effects(
        Scores({"whole": factual, "combined": factual, "null_pivot": null}, scenes.labels),
        Scores({"combined": gone}, removals.labels),
        removals,
        (0.0, 0.5),
    )
    zero, half = effect_of("pivot", 0), effect_of("pivot", 0.5)
    assert set(objects.estimated) == {zero, half}
    for i in range(m):
        scene, digit = removals.owner[i], removals.digit[i]
        assert objects.true[i] == pytest.approx(factual[scene, digit] - gone[i, digit], rel=1e-6)
        assert objects.estimated[zero][i] == pytest.approx(factual[scene, digit])
        assert objects.estimated[half][i] == pytest.approx(
            factual[scene, digit] - null[scene, digit] / 2, rel=1e-5
        )
