"""Scores of whole splits: each image once, in order, by both sets of weights."""

import weakref
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

IMAGES, CLASSES, SIZE = 21, 10, 32
MODEL = {"variables": jnp.float32(1), "average": jnp.float32(100), "mean_colour": jnp.float32(0.25)}


@pytest.fixture(scope="module")
def source():
    return Scenes("test_iid", num_scenes=IMAGES, size=SIZE)


@pytest.fixture(scope="module")
def parts():
    transforms = {"evaluate": ToViews(size=SIZE)}
    return SimpleNamespace(mesh=meshes.create(), reading=Reading(threads=1), transforms=transforms)


class Mean:
    """Weights times the image's mean, plus the colour: in place of a classifier."""

    def with_weights(self, variables, mean_colour, size):
        assert size == SIZE

        def score(views):
            mean = variables * views.astype(jnp.float32).mean(axis=(1, 2, 3, 4)) + mean_colour
            return {"combined": jnp.repeat(mean[:, None], CLASSES, axis=1)}

        return score


score = Mean()


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


class Alive:
    """Arrays of one batch, and the largest number of batches that were alive at once."""

    def __init__(self):
        self._arrays, self.most, self.calls = [], 0, 0

    def with_weights(self, variables, mean_colour, size):
        def score(views):
            rows = Mean().with_weights(variables, mean_colour, size)(views) | {
                "attention": views[:, 0, :, :, 0]
            }
            self._arrays += [weakref.ref(array) for array in rows.values()]
            self.calls += 1
            self.most = max(self.most, sum(array() is not None for array in self._arrays))
            return rows

        return score


@pytest.mark.parametrize(("attention", "arrays"), [(True, 2), (False, 1)])
def test_outputs_of_at_most_two_batches_are_on_the_devices(source, parts, attention, arrays):
    alive, options = Alive(), {"batch_size": 8, "weights": ("average",), "attention": attention}
    scores, _ = scoring.score_readable(parts, alive, MODEL, source, **options)
    assert alive.calls == 3
    # With those that are being computed; attention that nobody asks for does not outlive its batch.
    assert alive.most <= 2 * arrays + (not attention)
    assert (scores["average"].attention is not None) == attention
    expected = scoring.score_readable(parts, score, MODEL, source, batch_size=8)[0]["average"].logits
    np.testing.assert_array_equal(scores["average"].logits["combined"], expected["combined"])


def test_equal_weights_are_scored_once(source, parts):
    same = {"kernel": jnp.float32(3), "scale": jnp.float32(1)}

    class OfTrees(Alive):
        def with_weights(self, variables, mean_colour, size):
            return super().with_weights(variables["kernel"], mean_colour, size)

    for scale, calls in ((1, 3), (2, 6)):
        alive = OfTrees()
        model = MODEL | {"variables": same, "average": same | {"scale": jnp.float32(scale)}}
        scores = scoring.score_split(parts, alive, model, source, batch_size=8)
        assert alive.calls == calls
        one, other = scores["weights"].logits["combined"], scores["average"].logits["combined"]
        np.testing.assert_array_equal(one, other)


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
