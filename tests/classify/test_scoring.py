"""Scores of whole splits: each image once, in order, by both sets of weights."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.classify import scoring
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.hooks import Preempted

IMAGES, CLASSES = 21, 10
MODEL = {"variables": jnp.float32(1), "average": jnp.float32(100), "mean_colour": jnp.float32(0.25)}


@pytest.fixture(scope="module")
def source():
    return Scenes("test_iid", num_scenes=IMAGES, size=32)


@pytest.fixture(scope="module")
def parts():
    transforms = {"evaluate": ToViews(size=32)}
    return SimpleNamespace(mesh=meshes.create(), reading=Reading(threads=1), transforms=transforms)


def score(variables, mean_colour, views):
    """Weights times the image's mean, plus the colour: in place of a classifier."""
    mean = variables * views.astype(jnp.float32).mean(axis=(1, 2, 3, 4)) + mean_colour
    return {"combined": jnp.repeat(mean[:, None], CLASSES, axis=1)}


def test_each_image_once_in_order_by_both_sets_of_weights(source, parts):
    scores = scoring.score_split(parts, score, MODEL, source, batch_size=8)
    means = np.array([source[i]["image"].mean() for i in range(IMAGES)])
    assert len(set(means.round(3))) == IMAGES
    for weights, factor in (("weights", 1), ("average", 100)):
        np.testing.assert_allclose(
            scores[weights].logits["combined"],
            np.repeat(factor * means[:, None] + 0.25, CLASSES, axis=1),
            rtol=1e-5,
        )
        np.testing.assert_array_equal(scores[weights].labels, source.labels)


def test_a_run_may_be_asked_to_end_before_every_batch(source, parts):
    polls = []

    def poll():
        polls.append(None)
        if len(polls) == 3:
            raise Preempted("asked to end")

    with pytest.raises(Preempted):
        scoring.score_readable(parts, score, MODEL, source, batch_size=8, poll=poll)
    polls[:] = [None] * 3
    scoring.score_readable(parts, score, MODEL, source, batch_size=8, poll=poll)
    assert len(polls) == 3 + 3
