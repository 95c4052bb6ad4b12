"""De-confounded training: whole views update the mean feature, and nothing else does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import Training, mesh_of, objective

from cfmlc_jax.classify.deconfound import MeanFeature, counterfactual, with_tau_norm
from cfmlc_jax.classify.patching import DeviceCrops, HostViews, Whole
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Classifier, Outputs
from cfmlc_jax.models.heads.pooled import CLASSIFIERS, PooledHead

K, SIZE = 3, 16


@functools.cache
def training(patching, views, devices=1):
    backbone = resnet.ResNet(stage_sizes=(1,), block=resnet.BasicBlock, width=8, small_stem=True)
    attention = "none" if type(patching) is Whole else "cross"
    model = Classifier(backbone=backbone, head=PooledHead(K, attention, CLASSIFIERS["causal_norm"]))
    return Training(
        model,
        (1, views, SIZE, SIZE, 3),
        objective("whole" if attention == "none" else "pat_t", patching=patching),
        optax.sgd(0.0),
        mesh=mesh_of(devices),
        ema_decay=0.75,
        mean_feature=MeanFeature(lambda step: 0.5 - 0.25 * step),
    )


WHOLE, HOST, CROPS = Whole(2), HostViews(2), DeviceCrops(2, size=8)


@pytest.mark.parametrize(
    ("patching", "views", "devices"), [(WHOLE, 1, 1), (WHOLE, 1, 8), (HOST, 5, 1), (CROPS, 1, 1)]
)
def test_the_mean_feature_is_that_of_whole_views(rng, patching, views, devices):
    run = training(patching, views, devices).start()
    np.testing.assert_array_equal(run.variables["batch_stats"]["head"]["whole"]["mean_feature"], np.zeros(8))
    expected = 0.0
    for momentum in (0.5, 0.25):
        batch = {
            "views": rng.random((8, views, SIZE, SIZE, 3)).astype(np.float32),
            "labels": np.ones((8, K), np.float32),
        }
        # With learning rate 0 only running statistics change, and a forward pass in training does not use them.
        variables = jax.tree.map(np.asarray, run.variables)
        outputs, _ = run.model.apply(
            variables, patching.inputs(jnp.asarray(batch["views"])), train=True, mutable=["batch_stats"]
        )
        expected = momentum * expected + outputs.features["pooled"][:, 0].mean(axis=0)
        run.update(batch)
        moved = run.variables["batch_stats"]["head"]["whole"]["mean_feature"]
        assert moved.dtype == jnp.float32
        np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
        assert outputs.counterfactual.shape[:2] == (8, 1 if patching is CROPS else views)


def test_scoring_leaves_the_mean_feature(rng):
    run = training(WHOLE, 1).start()
    views = jnp.asarray(rng.random((2, 1, SIZE, SIZE, 3)), jnp.float32)
    before = jax.tree.map(np.asarray, run.variables["batch_stats"]["head"])
    _, updated = run.model.apply(run.variables, views, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"]["head"], before)


@pytest.mark.parametrize(("patch_weight", "share"), [(0.0, 1.0), (0.5, 0.5), (0.75, 0.25)])
def test_patches_do_not_change_the_mean_feature(patch_weight, share):
    along = jnp.arange(6.0).reshape(2, 1, 3)
    outputs = Outputs(None, None, None, None, {}, along)
    np.testing.assert_allclose(counterfactual(outputs, patch_weight=patch_weight), share * along[:, 0])


def test_tau_norm_of_both_sets_of_weights(rng):
    def variables():
        kernel = rng.normal(size=(4, K)).astype(np.float32)
        return {"params": {"head": {"whole": {"kernel": kernel}}}, "batch_stats": {}}

    model = {"variables": variables(), "average": variables(), "mean_colour": np.zeros(3)}
    assert with_tau_norm(model, 0.0) is model
    normed = with_tau_norm(model, 1.0)
    for name in ("variables", "average"):
        kernel = normed[name]["params"]["head"]["whole"]["kernel"]
        np.testing.assert_allclose((np.asarray(kernel) ** 2).sum(axis=0), np.ones(K), rtol=1e-5)
        assert normed[name]["batch_stats"] == {}
