"""Five training steps of the long-tailed reference, weights and inputs by rule, through our compiled step."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
from training import Training, mesh_of, objective

from cfmlc_jax import losses as loss_functions
from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify.deconfound import MeanFeature
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.scoring import Score as score_step
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.models import catalogue
from cfmlc_jax.optim.build import sgd
from cfmlc_jax.torch_weights import long_tailed

NAME, STEPS = "resnet32_cifar", 5
SHAPES = Path(__file__).parents[1] / "golden" / "longtail_backbones" / "resnet32_shapes.json"
# Sums over all of a parameter, relative to the sum of its magnitudes; single values.
SUM, ONE = 1e-4, 1e-3


def images(seed):
    noise = np.random.RandomState(seed).standard_normal((8, 3, 32, 32)).astype(np.float32)
    return np.ascontiguousarray(noise.transpose(0, 2, 3, 1))[:, None]


def batch(step):
    labels = np.random.RandomState(200 + step).randint(0, 10, 8)
    return {"views": images(100 + step), "labels": np.eye(10, dtype=np.float32)[labels]}


def weights():
    shapes = {key: tuple(shape) for key, shape in json.loads(SHAPES.read_text()).items()}
    filled = {key: reference.fill(key, shape) for key, shape in shapes.items() if "num_batches" not in key}
    checkpoint = {
        long_tailed.LATEST: {
            long_tailed.BACKBONE: filled,
            long_tailed.CLASSIFIER: {"weight": reference.fill("weight", (10, 128))},
        },
        long_tailed.MEAN_FEATURE: np.zeros(128, np.float32),
    }
    return long_tailed.from_torch(NAME, checkpoint)


def mean_cross_entropy(logits, labels):
    return loss_functions.cross_entropy(logits, labels).mean()


@pytest.fixture(scope="module")
def trained():
    """The losses, logits of the first step, and the variables after the last."""
    model = catalogue.create_model(NAME, 10, attention="none", image_size=32, head="causal_norm")
    # One device (two and four agree): with eight, one ReLU of the second step lies so near to 0 that rounding
    # puts it on the other side.
    run = Training(
        model,
        (1, 1, 32, 32, 3),
        objective("whole", loss=mean_cross_entropy, patching=Whole((2,))),
        sgd(learning_rate=0.02),
        mesh=mesh_of(1),
        log_every=1,
        ema_decay=0.0,
        mean_feature=MeanFeature(lambda step: 0.9),
    ).start()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.learned["variables"])
    learned = run.state.learned | {"variables": jax.device_put(weights(), shardings)}
    run.state = run.state.replace(learned=learned)
    losses = []
    for i in range(STEPS):
        assert run.update(batch(i)) == -1
        losses.append(float(run.tally["loss"]))
    score = score_step(model, Whole((2,)), POOLINGS["pivot"], kinds=("feature",), null="mean", mesh=run.mesh)
    views = meshes.to_devices({"views": images(999)}, run.mesh)["views"]
    logits = score(run.variables, run.mean_colour, views)
    return losses, jax.tree.map(np.asarray, logits), jax.tree.map(np.asarray, run.variables)


def test_losses(golden, trained):
    np.testing.assert_allclose(trained[0], golden("longtail/trajectory.npz")["losses"], rtol=0, atol=1e-5)


def test_effects_after_training(golden, trained):
    expected, logits = golden("longtail/trajectory.npz"), trained[1]
    for alpha in (0.0, 1.0, 3.0):
        effect = effects.total_direct_effect(logits["combined"], logits["null_feature"], alpha)
        np.testing.assert_allclose(effect, expected[f"eval_logits_alpha_{alpha}"], rtol=0, atol=1e-3)


def test_mean_feature_and_parameters(golden, trained):
    expected, variables = golden("longtail/trajectory.npz"), trained[2]
    back = long_tailed.to_torch(NAME, variables)
    mean = back[long_tailed.MEAN_FEATURE]
    np.testing.assert_allclose(mean, expected["embed_mean"], rtol=0, atol=1e-3 * np.abs(mean).max())
    entries = {
        f"{part}{key.removeprefix('module.')}": array
        for part, name in (("", long_tailed.BACKBONE), ("classifier.", long_tailed.CLASSIFIER))
        for key, array in back[long_tailed.LATEST][name].items()
    }
    for name in expected:
        if name.startswith("params/"):
            array = np.asarray(entries[name.removeprefix("params/")], np.float64)
            total, magnitude, *first = expected[name]
            np.testing.assert_allclose(
                [array.sum(), np.abs(array).sum()], [total, magnitude], rtol=0, atol=SUM * magnitude
            )
            np.testing.assert_allclose(array.ravel()[:8], first, rtol=0, atol=ONE)
