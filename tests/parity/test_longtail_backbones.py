"""Backbones of the long-tailed reference at small sizes: weights by rule (`reference`), noise as images.

Tolerances are those that the numbers were recorded with: in evaluation 1e-4 of the largest value,
in training 1e-3, see tests/golden/longtail_backbones/README.md.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers.images import IMAGES
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.torch_weights import long_tailed

GOLDEN = Path(__file__).parents[1] / "golden" / "longtail_backbones"
STATISTICS = json.loads((GOLDEN / "statistics.json").read_text())
# Our names of the maps that were recorded. "bn1" was, before its ReLU.
STAGES = {"bn1": "stem", "maxpool": "stem"}
EVALUATION, TRAINING = 1e-4, 1e-3


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


def shapes(name):
    return {
        key: tuple(shape) for key, shape in json.loads((GOLDEN / f"{name}_shapes.json").read_text()).items()
    }


def images(size):
    """Noise [4, 1, size, size, 3]: four images of one view."""
    noise = np.random.RandomState(0).standard_normal((4, 3, size, size)).astype(np.float32)
    return np.ascontiguousarray(noise.transpose(0, 2, 3, 1))[:, None]


def module(name):
    return catalogue.BACKBONES[name].create(dtype=jnp.float32, norm=BatchNorm)


def forward(model, variables, views, *, train):
    """Features of views, each [4, …], and the running statistics after it, as the classifier maps a backbone."""

    def one(view):
        features, updated = model.apply(variables, view, train=train, mutable=["batch_stats"])
        return jax.tree.map(lambda x: x[0], features), updated["batch_stats"]

    return jax.vmap(one, axis_name=IMAGES, out_axes=(0, None))(views)


def assert_near(actual, expected, tolerance, scale=None):
    expected = np.asarray(expected)
    scale = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def assert_statistics(array, recorded, tolerance, message):
    """Sum, sum of magnitudes and first values of an array in PyTorch's layout."""
    array = np.asarray(array, np.float64)
    assert list(array.shape) == recorded["shape"], message
    first = array.ravel()[: len(recorded["first8"])]
    assert_near(first, recorded["first8"], tolerance, np.abs(array).max())
    assert_near([array.sum(), np.abs(array).sum()], [recorded["sum"], recorded["abs_sum"]], tolerance)


def assert_stages(features, recorded, tolerance):
    compared = 0
    for stage, expected in recorded.items():
        name = STAGES.get(stage, stage)
        if name not in features:
            continue
        if stage == "bn1":
            positive = (expected["sum"] + expected["abs_sum"]) / 2
            first = np.maximum(expected["first8"], 0)
            expected = expected | {"sum": positive, "abs_sum": positive, "first8": first}
        assert_statistics(np.asarray(features[name]).transpose(0, 3, 1, 2), expected, tolerance, stage)
        compared += 1
    assert compared >= 5


@functools.cache
def resnet32():
    """Model, variables, images, features of training and its statistics."""
    model = module("resnet32_cifar")
    variables = long_tailed.backbone_from_torch("resnet32_cifar", reference.fill_all(shapes("resnet32")))
    return model, variables, images(32)


def test_resnet32_in_evaluation():
    arrays, (model, variables, views) = load("resnet32"), resnet32()
    features, updated = jax.jit(functools.partial(forward, model, train=False))(variables, views)
    assert_near(features["pooled"], arrays["feat_eval"], EVALUATION)
    for branch, recorded in (("cb_block", "map_cb"), ("rb_block", "map_rb")):
        assert_near(features[branch][:1].transpose(0, 3, 1, 2), arrays[recorded], EVALUATION)
    assert_stages(features, STATISTICS["resnet32_eval_stages"], EVALUATION)
    jax.tree.map(np.testing.assert_array_equal, updated, variables["batch_stats"])


def test_resnet32_in_training():
    arrays, (model, variables, views) = load("resnet32"), resnet32()

    @functools.partial(jax.value_and_grad, has_aux=True)
    def mean_square(params):
        features, updated = forward(model, variables | {"params": params}, views, train=True)
        return jnp.square(features["pooled"]).mean(), (features, updated)

    (loss, (features, updated)), gradient = jax.jit(mean_square)(variables["params"])
    assert_near(features["pooled"], arrays["feat_train"], TRAINING)
    assert_stages(features, STATISTICS["resnet32_train_stages"], TRAINING)
    assert_near(loss, STATISTICS["resnet32_train_loss_mean_sq"], TRAINING)
    gradients = long_tailed.backbone_to_torch(
        "resnet32_cifar", {"params": gradient, "batch_stats": variables["batch_stats"]}
    )
    for key, recorded in STATISTICS["resnet32_grads"].items():
        # The sum of a gradient cancels: against the sum of its magnitudes.
        actual = np.asarray(gradients[key], np.float64)
        assert_near(actual.ravel()[:8], recorded["first8"], TRAINING, np.abs(actual).max())
        sums = [actual.sum(), np.abs(actual).sum()]
        assert_near(sums, [recorded["sum"], recorded["abs_sum"]], TRAINING, recorded["abs_sum"])
    assert_running("resnet32_cifar", variables, updated, "resnet32_running_after_1_train_fwd")


def assert_running(name, variables, updated, recorded):
    state_dict = long_tailed.backbone_to_torch(name, variables | {"batch_stats": updated})
    for key, expected in STATISTICS[recorded].items():
        actual = np.asarray(state_dict[key], np.float64)
        assert_near(actual[:8], expected["first8"], TRAINING, np.abs(actual).max())
        assert_near(actual.sum(), expected["sum"], TRAINING, expected["abs_sum"])


@pytest.mark.parametrize("train", [False, True])
def test_resnext50(train):
    arrays, views, mode = load("resnext50"), images(64), "train" if train else "eval"
    variables = long_tailed.backbone_from_torch("resnext50_32x4d", reference.fill_all(shapes("resnext50")))
    tolerance = TRAINING if train else EVALUATION
    run = jax.jit(functools.partial(forward, module("resnext50_32x4d"), train=train))
    features, updated = run(variables, views)
    assert_near(features["pooled"], arrays[f"feat_{mode}"], tolerance)
    assert_stages(features, STATISTICS[f"resnext50_{mode}64_stages"], tolerance)
    if train:
        assert_running("resnext50_32x4d", variables, updated, "resnext50_running_after_1_train_fwd_64")


@pytest.mark.parametrize(
    ("name", "short"), [("resnet32_cifar", "resnet32"), ("resnext50_32x4d", "resnext50")]
)
def test_the_state_dict_has_the_references_entries(name, short):
    expected = shapes(short)
    variables = long_tailed.backbone_from_torch(name, reference.fill_all(expected))
    assert {
        key: array.shape for key, array in long_tailed.backbone_to_torch(name, variables).items()
    } == expected
