"""README's recipes for a fork: what a line in a registry is enough for, and that lists of names agree."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.causal import patches
from cfmlc_jax.classify import build, pat
from cfmlc_jax.classify.patching import HostViews
from cfmlc_jax.config import classifier
from cfmlc_jax.data import build as data
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.classifier import Outputs


def small(**patches):
    config = configs.default()
    config.views.image_size = 32
    config.model.name = "resnet_small"
    config.patches.update(patches)
    return config


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("source", ["host", "map"])
def test_a_new_pooling_is_a_function_and_a_line(monkeypatch, rng, background, source):
    def mean_logits(attention, scores):
        return scores.mean(axis=1)

    pooling = patches.Pooling(mean_logits, lambda attention, scores: 0 * scores, background)
    monkeypatch.setitem(patches.POOLINGS, "mean", pooling)
    config = small(pooling="mean", source=source)
    config.effect.kinds = ("whole",)
    parts = build.create(configs.validate(config), 3)
    if source == "map":
        assert parts.model.cells.background == background
    attention, score, whole = jnp.asarray(rng.normal(size=(3, 2, 5, 3)), jnp.float32)
    outputs = Outputs(whole, attention, score, None, {})
    expected = score[:, 1:].mean(axis=1)
    logits = pat.predict(outputs, HostViews(2), parts.pooling)
    np.testing.assert_allclose(logits["patch"], expected, rtol=1e-6)


def test_a_pooling_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setitem(patches.POOLINGS, "mean", patches.POOLINGS["pivot"])
    with pytest.raises(InputError, match="'men' is not one of pivot, exclusive, mean; did you mean 'mean'"):
        configs.validate(small(pooling="men"))


def test_every_method_and_source_of_patches_has_its_implementation():
    assert set(classifier.METHODS) == set(pat.METHODS)


@pytest.mark.parametrize("name", sorted(set(data.SOURCES) - {"tfds", "scenes", "long_tailed_digits"}))
def test_every_source_is_opened_by_its_name(name, tmp_path):
    """Its own files are what is missing."""
    config = configs.default()
    config.data.source, config.data.root = name, str(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        data.source(config.data, "train")
