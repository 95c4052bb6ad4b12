"""Combination, null inputs and total direct effects."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import metrics
from cfmlc_jax.causal import effects, patches


def test_combination_is_the_mean_of_logits():
    whole, patch = jnp.array([[1.0, -4]]), jnp.array([[3.0, 2]])
    np.testing.assert_array_equal(effects.combine(whole, patch), [[2, -1]])
    np.testing.assert_array_equal(effects.combine(whole, patch, 0.75), [[2.5, 0.5]])
    np.testing.assert_array_equal(effects.combine(whole, patch, 1.0), patch)


def test_alpha_zero_is_the_factual_prediction(rng):
    factual, counterfactual = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    np.testing.assert_array_equal(effects.total_direct_effect(factual, counterfactual, 0.0), factual)


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_one_counterfactual_for_all_images_cannot_change_average_precision(rng, definition):
    factual = rng.normal(size=(50, 4))
    labels = rng.random((50, 4)) < 0.3
    null = rng.normal(size=(1, 4))
    shifted = effects.total_direct_effect(factual, null, 0.7)
    before, after = (metrics.average_precision(x, labels, definition) for x in (factual, shifted))
    np.testing.assert_array_equal(before, after)
    # … while it does change thresholded predictions.
    assert metrics.thresholded(shifted, labels, 0.0) != metrics.thresholded(factual, labels, 0.0)


def test_constant_nulls():
    images = jnp.ones((3, 4, 4, 3))
    np.testing.assert_array_equal(effects.null_images(images, "zeros"), np.zeros((1, 4, 4, 3)))
    mean = effects.null_images(images, "mean", jnp.array([0.1, 0.2, 0.3]))
    assert mean.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(mean[0, 2, 1], [0.1, 0.2, 0.3], rtol=1e-6)


def test_blur_keeps_a_constant_image_and_removes_detail(rng):
    constant = jnp.full((2, 16, 16, 3), 0.4)
    np.testing.assert_allclose(effects.null_images(constant, "blur"), constant, rtol=1e-5)
    noise = jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)
    blurred = effects.null_images(noise, "blur")
    assert blurred.shape == noise.shape
    assert blurred.std() < 0.1 * noise.std()
    np.testing.assert_allclose(blurred.mean(), noise.mean(), atol=0.02)


@pytest.mark.parametrize(("kind", "match"), [("black", "not one of"), ("mean", "mean colour")])
def test_invalid_null_kinds_are_refused(kind, match):
    with pytest.raises(ValueError, match=match):
        effects.null_images(jnp.zeros((1, 4, 4, 3)), kind)


def test_removing_each_patch_equals_pooling_by_hand(rng):
    attention, scores = jnp.asarray(rng.normal(size=(2, 2, 4, 4, 3)), jnp.float32)
    null_attention, null_score = jnp.asarray(rng.normal(size=(2, 1, 4, 3)), jnp.float32)
    removed = effects.pooled_without_each(
        effects.with_null_removed(attention, null_attention), effects.with_null_removed(scores, null_score)
    )
    assert removed.shape == (2, 4, 3)
    for p in range(4):
        by_hand = patches.patch_logits(
            attention[:, p].at[:, p].set(null_attention[:, p]), scores[:, p].at[:, p].set(null_score[:, p])
        )
        np.testing.assert_allclose(removed[:, p], by_hand, rtol=1e-5, atol=1e-6)


def test_the_pivot_decides_what_is_removed():
    attention = jnp.array([[[50.0, 0.0], [0.0, 50.0]]])
    removed = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    np.testing.assert_allclose(effects.pivot_counterfactual(attention, removed), [[1.0, 4.0]])
