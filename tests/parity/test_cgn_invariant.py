"""The invariant classifier of ImageNet, a ResNet-50 with three heads, at 64 px: logits and one step of training.

Weights by rule (`reference`); see tests/golden/cgn/README.md.
"""

import jax
import numpy as np
import optax
import pytest
import recorded
import reference
from training import Training, mesh_of

from cfmlc_jax import losses
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import invariant
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.scoring import Score
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import cgn

# The reference's names of the logits.
LOGITS = {
    "shape": "shape_preds",
    "texture": "texture_preds",
    "background": "bg_preds",
    "combined": "avg_preds",
    "shape_texture": "shape_texture_preds",
}
EVALUATION, TRAINING = 1e-4, 1e-4
# Of the gradients of the first layers: there our own float32 and float64 differ by 2e-3 of the largest value.
STEM = 2e-3
SIZE, CLASSES = 64, 1000


@pytest.fixture(scope="module")
def model():
    fields = catalogue.Model("resnet50", "mechanisms", frozen_norms=True)
    return catalogue.create(fields, CLASSES, SIZE)


@pytest.fixture(scope="module")
def variables(model):
    return cgn.from_torch(model, reference.fill_all(recorded.shapes("invariant_ensemble_resnet50")))


def images(seed):
    noise = np.random.RandomState(seed).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    return recorded.channels_last(noise)[:, None]


def test_logits_of_each_head(model, variables):
    golden = recorded.arrays("cgn/invariant_ensemble")
    score = Score(model, Whole(2), POOLINGS["pivot"], kinds=(), null="mean", mesh=mesh_of(1))
    logits = score(variables, np.zeros(3, np.float32), images(0))
    for name, recorded_name in LOGITS.items():
        expected = golden[recorded_name]
        recorded.assert_near(logits[name], expected, EVALUATION * np.abs(expected).max(), name)
    np.testing.assert_array_equal(logits["combined"], logits["whole"])


@pytest.mark.slow(reason="the gradient of a ResNet-50 is compiled")
def test_one_step_of_training(model, variables):
    """The two losses, and, as the change by plain gradient descent, the sum of their gradients."""
    numbers = recorded.numbers("cgn/invariant_ensemble")["train_step"]
    objective = invariant.InvariantObjective(
        loss=losses.cross_entropy, names=invariant.LOSSES, patching=Whole(2), pooling=POOLINGS["pivot"]
    )
    run = Training(
        model, (1, 1, SIZE, SIZE, 3), objective, optax.sgd(1.0), mesh=mesh_of(1), log_every=9, ema_decay=0.5
    ).start()
    run.state.learned["variables"] = jax.tree.map(jax.numpy.asarray, variables)
    # Real and generated images alternate.
    which = np.array([False, True, False, True])
    views = np.zeros((4, 1, SIZE, SIZE, 3), np.float32)
    views[~which], views[which] = images(1), images(2)
    labels = np.zeros((4, CLASSES), np.float32)
    labels[[0, 1, 2, 3], [3, 1, 700, 2]] = 1
    batch = {
        "views": views,
        "labels": labels,
        "counterfactual": which,
        "mechanisms": {
            name: np.array([-1, first, -1, second], np.int32)
            for name, first, second in (("shape", 1, 2), ("texture", 10, 20), ("background", 100, 200))
        },
    }
    assert run.update(batch) == -1
    tally = jax.tree.map(float, dict(run.tally))
    recorded.assert_near(tally["loss_real"], numbers["loss_real"], TRAINING * numbers["loss_real"])
    generated = tally["loss_shape"] + tally["loss_texture"] + tally["loss_background"]
    recorded.assert_near(generated, numbers["loss_cf"], TRAINING * numbers["loss_cf"])
    after = jax.tree.map(np.asarray, run.variables)
    gradient = jax.tree.map(np.subtract, variables["params"], after["params"])
    by_key = cgn.to_torch(model, {"params": gradient, "batch_stats": after["batch_stats"]})
    for key, expected in numbers["grads"].items():
        tolerance = STEM if key.startswith("backbone") else TRAINING
        recorded.assert_statistics(by_key[key], expected, tolerance, key)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
