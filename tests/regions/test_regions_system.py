"""One step of a classifier of regions, and the probabilities that it predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfmlc_jax.causal import effects
from cfmlc_jax.engine.system import Update
from cfmlc_jax.models.heads import box
from cfmlc_jax.optim.build import sgd
from cfmlc_jax.regions import scoring
from cfmlc_jax.regions.system import RegionSystem

CLASSES, STAGES, WIDTH = 3, 2, 8
LABELS = np.array([[[0, 3], [3, 1], [-1, 2]], [[2, 3], [3, 3], [-1, -1]]], np.int32)


def system(**options):
    head = functools.partial(box.BoxHead, CLASSES, shared_layers=0, boxes=False)
    defaults = {"weights": (1.0, 0.5), "counted": "foreground", "momentum": 0.5}
    return RegionSystem(
        box.Cascade(head, STAGES),
        (1, STAGES, WIDTH),
        CLASSES + 1,
        sgd(learning_rate=0.1),
        **defaults | options,
    )


@pytest.fixture(scope="module")
def step():
    """The state before and after a step with learned mean features of ones, and the batch."""
    rng = np.random.default_rng(0)
    batch = {"features": rng.normal(size=(2, 3, STAGES, WIDTH)).astype(np.float16), "labels": LABELS}
    trained = system()
    before = trained.init(jax.random.key(0))
    before["variables"]["batch_stats"] = jax.tree.map(jnp.ones_like, before["variables"]["batch_stats"])
    after = jax.jit(
        lambda learned, batch: trained.update(learned, batch, None, 0)._asdict() | {"watched": ()}
    )
    return before, Update(**after(before, batch)), batch


def test_loss_by_hand(step):
    """A mean over the regions with a label in each stage, weighted by stage."""
    before, update, batch = step
    features = batch["features"].astype(np.float32).reshape(6, STAGES, WIDTH)
    heads = box.Cascade(functools.partial(box.BoxHead, CLASSES, shared_layers=0, boxes=False), STAGES)
    total = 0.0
    for i, (output, weight) in enumerate(zip(heads.apply(before["variables"], features), (1.0, 0.5))):
        labels = LABELS[..., i].reshape(-1)
        known = labels >= 0
        costs = optax.softmax_cross_entropy_with_integer_labels(output.factual[known], labels[known])
        np.testing.assert_allclose(update.values[f"loss_stage_{i}"], costs.mean(), rtol=1e-5)
        total += weight * float(costs.mean())
    np.testing.assert_allclose(update.values["loss"], total, rtol=1e-5)
    change = update.learned["variables"]["params"]["stage_0"]["fc_cls"]["kernel"]
    assert not np.allclose(change, before["variables"]["params"]["stage_0"]["fc_cls"]["kernel"])


def test_mean_features_are_of_the_foreground_of_each_stage(step):
    _, update, batch = step
    features = batch["features"].astype(np.float32).reshape(6, STAGES, WIDTH)
    for i in range(STAGES):
        labels = LABELS[..., i].reshape(-1)
        foreground = features[(labels >= 0) & (labels < CLASSES), i]
        mean = update.learned["variables"]["batch_stats"][f"stage_{i}"]["fc_cls"]["mean_feature"]
        np.testing.assert_allclose(mean, 0.5 + foreground.mean(axis=0), rtol=1e-5)


def test_the_background_is_exempt_or_not(rng):
    factual, counterfactual = jnp.asarray(rng.normal(size=(2, 6, CLASSES + 1)), jnp.float32)
    output = box.BoxOutputs(factual, counterfactual, None, None)
    plain = jax.nn.softmax(factual, axis=-1)
    exempt = scoring.probability(output, 1.5, True)
    np.testing.assert_allclose(exempt[:, -1], plain[:, -1], rtol=1e-6)
    effect = effects.total_direct_effect(factual, counterfactual, 1.5)
    np.testing.assert_allclose(
        scoring.probability(output, 1.5, False), jax.nn.softmax(effect, axis=-1), rtol=1e-6
    )
    np.testing.assert_array_equal(scoring.probability(output, 0.0, True), plain)
