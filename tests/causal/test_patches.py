"""Patch pooling: golden values, permutation invariance, limits."""

import jax
import jax.numpy as jnp
import numpy as np

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
