"""Classifiers for long tails against the reference's numbers, weights and inputs by rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from cfmlc_jax import losses
from cfmlc_jax.causal import effects
from cfmlc_jax.causal import mean_feature as mean_features
from cfmlc_jax.models.heads import pooled as classifiers

GOLDEN = "longtail/classifiers.npz"
# Features, classes, the configured alpha, and the step between the classes that are kept.
RUNS = {"cifar10": (128, 10, 1.0, 1), "cifar100": (2048, 100, 1.5, 1), "imagenet": (2048, 1000, 3.0, 10)}
ALPHAS = (0, 0.5, 1, 1.5, 3)


def inputs(d, k):
    """Features [6, d] after a ReLU, the mean feature [d], and one-hot labels [6, k]."""
    features = np.maximum(np.random.RandomState(0).standard_normal((6, d)).astype(np.float32), 0)
    mean_feature = np.float32(5) * np.abs(np.random.RandomState(1).standard_normal(d).astype(np.float32))
    return features, mean_feature, np.eye(k, dtype=np.float32)[np.random.RandomState(2).randint(0, k, 6)]


def variables(d, k, mean_feature):
    return {
        "params": {"kernel": reference.fill("weight", (k, d)).T},
        "batch_stats": {"mean_feature": mean_feature},
    }


@pytest.mark.parametrize("run", RUNS)
def test_logits_and_effects(golden, run):
    """Factual logits in evaluation, and effects for all alphas; alpha 0 is the reference without effect."""
    d, k, alpha, step = RUNS[run]
    features, mean_feature, _ = inputs(d, k)
    expected = golden(GOLDEN)
    module = classifiers.CosineClassifier(k)
    logits = jax.jit(module.apply)(variables(d, k, mean_feature), features)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)
    close(logits.factual[:, ::step], expected[f"{run}/no_effect"])
    for strength in ALPHAS:
        effect = effects.total_direct_effect(logits.factual, logits.counterfactual, strength)
        close(effect[:, ::step], expected[f"{run}/tde_{strength:g}"])
    configured = effects.total_direct_effect(logits.factual, logits.counterfactual, alpha)
    close(configured[:, ::step], expected[f"{run}/tde_config"])
    close(mean_features.cosines(features, mean_feature, 2), expected[f"{run}/cos"])


@pytest.mark.parametrize("run", RUNS)
def test_training_logits_loss_and_gradients(golden, run):
    d, k, _, step = RUNS[run]
    features, mean_feature, labels = inputs(d, k)
    state = variables(d, k, mean_feature)
    expected = golden(GOLDEN)
    module = classifiers.CosineClassifier(k)

    def loss(kernel, x):
        changed = state | {"params": {"kernel": kernel}}
        logits = module.apply(changed, x)
        return losses.cross_entropy(logits.factual, labels).mean(), logits.factual

    differentiated = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, logits), (kernel_gradient, x_gradient) = differentiated(state["params"]["kernel"], features)
    np.testing.assert_allclose(logits[:, ::step], expected[f"{run}/train"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(value, expected[f"{run}/ce"], rtol=0, atol=1e-5)
    every = features.shape[1] // expected[f"{run}/grad_x"].shape[1]
    np.testing.assert_allclose(x_gradient[:, ::every], expected[f"{run}/grad_x"], rtol=0, atol=1e-6)
    total, magnitude, *first = expected[f"{run}/grad_weight"]
    gradient = np.asarray(kernel_gradient, np.float64).T
    np.testing.assert_allclose(
        [gradient.sum(), np.abs(gradient).sum()], [total, magnitude], atol=1e-5 * magnitude
    )
    np.testing.assert_allclose(gradient[0, :8], first, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("key", "constant"), [("seq_mu09", True), ("seq_lr_scaled", False)])
def test_mean_feature_after_each_of_five_batches(golden, key, constant):
    expected = golden(GOLDEN)
    mean_feature = np.zeros(128, np.float32)
    for i, momentum in enumerate([0.9] * 5 if constant else expected["mean/mus"]):
        features = np.maximum(np.random.RandomState(10 + i).standard_normal((8, 128)).astype(np.float32), 0)
        mean_feature = mean_features.moving_sum(mean_feature, features, momentum)
        assert mean_feature.dtype == jnp.float32
        np.testing.assert_allclose(mean_feature, expected[f"mean/{key}"][i], rtol=0, atol=1e-5)


def test_linear(golden):
    expected = golden(GOLDEN)
    params = {"kernel": reference.fill("fc.weight", (10, 128)).T}
    logits = classifiers.LinearClassifier(10).apply({"params": params}, expected["baseline/x"])
    assert logits.counterfactual is None
    np.testing.assert_allclose(logits.factual, expected["baseline/dotproduct"], rtol=0, atol=1e-5)


def test_learnable_weight_scaling(golden):
    """Logits, and the gradient of the mean cross-entropy: of the scales only."""
    expected = golden(GOLDEN)
    labels = np.eye(10, dtype=np.float32)[np.random.RandomState(2).randint(0, 10, 6)]
    params = {
        "kernel": reference.fill("fc.weight", (10, 128)).T,
        "bias": reference.fill("fc.bias", (10,)),
        "scales": reference.fill("scales", (10,)),
    }

    def loss(params):
        logits = classifiers.ScaledClassifier(10).apply({"params": params}, expected["baseline/x"])
        return losses.cross_entropy(logits.factual, labels).mean(), logits.factual

    gradient, logits = jax.grad(loss, has_aux=True)(params)
    np.testing.assert_allclose(logits, expected["baseline/lws"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient["scales"], expected["baseline/lws_grad_scales"], rtol=0, atol=1e-5)
    for name in ("kernel", "bias"):
        assert not gradient[name].any()


@pytest.mark.parametrize("tau", ["0.5", "0.7", "1"])
def test_tau_norm(golden, tau):
    expected = golden(GOLDEN)
    kernel = classifiers.tau_norm(jnp.asarray(reference.fill("fc.weight", (10, 128)).T), float(tau))
    logits = classifiers.LinearClassifier(10).apply({"params": {"kernel": kernel}}, expected["baseline/x"])
    np.testing.assert_allclose(logits.factual, expected[f"baseline/tau_norm_{tau}"], rtol=0, atol=1e-5)
