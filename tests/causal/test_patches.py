"""Patch pooling: golden values, permutation invariance, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cfmlc_jax import losses
from cfmlc_jax.causal import effects, patches


def view_major(flat, b):
    """The reference's [p·b, k] as ours [b, p, k]."""
    return jnp.asarray(flat.reshape(-1, b, flat.shape[-1]).swapaxes(0, 1))


def test_golden_pooling(golden):
    z = golden("weighted_sum.npz")
    first, second = view_major(z["logits1"], 3), view_major(z["logits2"], 3)
    np.testing.assert_allclose(patches.patch_logits(first, second), z["out_cross"], rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(patches.patch_logits(first, first), z["out_self"], rtol=2e-6, atol=1e-6)
    nine = patches.patch_logits(view_major(z["logits1_grid3"], 2), view_major(z["logits2_grid3"], 2))
    np.testing.assert_allclose(nine, z["out_cross_grid3"], rtol=2e-6, atol=1e-6)


def test_golden_loss_gradient_and_prediction(golden):
    z = golden("weighted_sum.npz")
    targets = z["targets"]

    def loss(whole, attention, score):
        patch = patches.patch_logits(attention, score)
        parts = [losses.asymmetric_loss(x, targets).sum() for x in (whole, patch)]
        return sum(parts), (parts, jax.nn.sigmoid(effects.combine(whole, patch)))

    inputs = jnp.asarray(z["logits_ori"]), view_major(z["logits1"], 3), view_major(z["logits2"], 3)
    (total, (parts, prob)), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*inputs)
    np.testing.assert_allclose([total, *parts], [z["loss"], z["loss_ori"], z["loss_pat"]], rtol=1e-6)
    np.testing.assert_allclose(prob, z["eval_prob"], rtol=1e-6)
    # 3e-6: the reference takes 1 − sigmoid in float32, which ours does not (see losses).
    np.testing.assert_allclose(gradients[0], z["grad_logits_ori"], atol=3e-6)
    np.testing.assert_allclose(gradients[1], view_major(z["grad_logits1"], 3), atol=1e-6)
    np.testing.assert_allclose(gradients[2], view_major(z["grad_logits2"], 3), atol=1e-6)


def test_order_of_patches_does_not_matter(rng):
    attention, scores = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    order = rng.permutation(4)
    np.testing.assert_allclose(
        patches.patch_logits(attention[:, order], scores[:, order]),
        patches.patch_logits(attention, scores),
        rtol=1e-5,
    )


def test_strong_attention_selects_the_pivot(rng):
    attention, scores = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    pivot = patches.pivot(attention)
    assert pivot.shape == (3, 5)
    chosen = jnp.take_along_axis(scores, pivot[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(patches.patch_logits(1e4 * attention, scores), chosen, rtol=1e-6)


def test_a_constant_added_to_attention_changes_nothing(rng):
    attention, scores = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    np.testing.assert_allclose(
        patches.patch_logits(attention + 7, scores), patches.patch_logits(attention, scores), rtol=1e-5
    )


def test_weights_are_float32_whatever_comes_in(rng):
    weights = patches.patch_weights(jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.bfloat16))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_exclusive_evidence_by_hand():
    # One patch, scores log 2 and log 1 beside the background's log 1: shares 2/4 and 1/4.
    one = jnp.log(jnp.array([[[2.0, 1.0]]]))
    np.testing.assert_allclose(jnp.exp(patches.shares(one)), [[[0.5, 0.25]]], rtol=1e-6)
    np.testing.assert_allclose(jax.nn.sigmoid(patches.exclusive_logits(one)), [[0.5, 0.25]], rtol=1e-6)
    # Two such patches: 1 − (1/2)², 1 − (3/4)².
    two = jnp.concatenate([one, one], axis=1)
    np.testing.assert_allclose(jax.nn.sigmoid(patches.exclusive_logits(two)), [[0.75, 0.4375]], rtol=1e-6)


def test_exclusive_evidence_is_the_noisy_or_in_float64(rng):
    scores = rng.normal(size=(50, 9, 6)) * np.exp(rng.normal(size=(50, 1, 1))) * 3 - 3
    raised = np.exp(scores)
    share = raised / (1 + raised.sum(axis=-1, keepdims=True))
    evidence = -np.log1p(-share).sum(axis=1)
    moderate = evidence < 5  # beyond, float32 has few digits of what shares of almost 1 leave over
    expected = np.log(np.expm1(evidence))
    actual = np.asarray(patches.exclusive_logits(jnp.asarray(scores, jnp.float32)))
    assert moderate.mean() > 0.5
    np.testing.assert_allclose(actual[moderate], expected[moderate], rtol=2e-4, atol=2e-4)


def test_a_patch_of_one_class_is_no_evidence_for_another():
    scores = jnp.array([[[2.0, 2.0]]])
    explained = scores.at[0, 0, 1].add(5.0)
    before, after = patches.exclusive_logits(scores)[0], patches.exclusive_logits(explained)[0]
    assert after[1] > before[1]
    assert after[0] < before[0] - 3
    # The paper's pooling hears both.
    np.testing.assert_array_equal(
        patches.patch_logits(scores, scores)[0, 0], patches.patch_logits(explained, explained)[0, 0]
    )


def test_order_of_patches_does_not_matter_to_exclusive_evidence(rng):
    scores = jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32)
    order = rng.permutation(5)
    np.testing.assert_allclose(
        patches.exclusive_logits(scores[:, order]), patches.exclusive_logits(scores), rtol=1e-5
    )


@pytest.mark.parametrize("size", [0.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_exclusive_evidence_is_finite_with_its_gradient(size, sign, rng):
    scores = jnp.asarray(sign * size * np.abs(rng.normal(size=(2, 4, 3))), jnp.float32)
    value, gradient = jax.value_and_grad(lambda s: patches.exclusive_logits(s).sum())(scores)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_gradient_of_exclusive_evidence(rng):
    scores = jnp.asarray(rng.normal(size=(2, 3, 4)) * 2, jnp.float32)
    check_grads(patches.exclusive_logits, (scores,), order=1, modes=("rev",), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", ["pivot", "exclusive"])  # another pooling may look at all patches alike
def test_where_a_class_looks(name, rng):
    """The softmax of a pooling's focus is on the patch that alone has the class."""
    scores = jnp.asarray(rng.normal(size=(1, 4, 3)) - 6, jnp.float32).at[0, 2, 1].set(9.0)
    pooling = patches.POOLINGS[name]
    assert patches.pivot(pooling.focus(scores, scores))[0, 1] == 2
    logits = pooling.logits(scores, scores)
    assert logits.shape == (1, 3)
    assert logits[0, 1] > 5
