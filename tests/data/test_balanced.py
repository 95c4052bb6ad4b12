"""Classes equally often, and what one label an image means."""

import numpy as np
import pytest

from cfmlc_jax.data.sources import checks
from cfmlc_jax.data.sources.balanced import Balanced
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.errors import InputError


def test_every_class_as_often_as_the_commonest():
    source = LongTailedDigits("train", most=6, ratio=0.3)
    assert source.class_counts.tolist() == [6, 5, 4, 4, 3, 3, 2, 2, 2, 1]
    balanced = Balanced(source)
    assert len(balanced) == 60
    assert balanced.labels.sum(axis=0).tolist() == [6] * 10
    assert set(balanced.ids) == set(source.ids)
    for i in (0, 35, 59):
        record = balanced[i]
        assert record["id"] == balanced.ids[i]
        np.testing.assert_array_equal(record["labels"], balanced.labels[i])
    # Of two images each comes half of the time.
    assert np.unique(balanced.ids[36:42], return_counts=True)[1].tolist() == [3, 3]


def test_a_class_without_an_image():
    source = LongTailedDigits("train", most=6, ratio=0.3)
    source.labels = source.labels[:-1] * (np.arange(10) != 7)
    with pytest.raises(InputError, match="has no image of digit 7, so classes cannot be balanced"):
        Balanced(source)


def test_several_labels_are_refused():
    digits, scenes = LongTailedDigits("val", num_test=2), Scenes("val", num_scenes=20)
    checks.require_one_label("val", digits, "focal")
    several = int((scenes.labels.sum(axis=1) != 1).sum())
    with pytest.raises(
        InputError, match=rf"val: {several} of 20 images do not have exactly one label.*'focal'"
    ):
        checks.require_one_label("val", scenes, "focal")
