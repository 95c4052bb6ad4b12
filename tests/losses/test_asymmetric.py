"""Asymmetric loss: golden values of the reference, hand values, limits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import losses

SETTINGS = [(4, 0, 0.05), (4, 1, 0.05), (0, 0, 0), (2, 1, 0)]


@pytest.mark.parametrize(("gamma_neg", "gamma_pos", "clip"), SETTINGS)
@pytest.mark.parametrize("constant_weight", [1, 0])
def test_golden_value_and_gradient(golden, gamma_neg, gamma_pos, clip, constant_weight):
    arrays = golden("losses.npz")
    key = f"asl_gn{gamma_neg}_gp{gamma_pos}_clip{clip}_disable{constant_weight}"

    def total(x):
        return losses.asymmetric_loss(
            x,
            arrays["y"],
            gamma_neg=gamma_neg,
            gamma_pos=gamma_pos,
            clip=clip,
            weight_gradient=not constant_weight,
        ).sum()

    # The float64 values are the truth: the reference's 1 − sigmoid loses digits as |x| grows, in
    # float32 all of them at 15. Ours keeps them, so float32 meets the float64 numbers everywhere.
    with jax.enable_x64(True):
        x64 = jnp.asarray(arrays["x"], jnp.float64)
        np.testing.assert_allclose(total(x64), arrays[key + "_value_f64"], rtol=1e-10)
        np.testing.assert_allclose(jax.grad(total)(x64), arrays[key + "_grad_f64"], atol=1e-9)
    x32 = jnp.asarray(arrays["x"])
    np.testing.assert_allclose(total(x32), arrays[key + "_value_f64"], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(total)(x32), arrays[key + "_grad_f64"], atol=1e-6)


def test_values_computed_by_hand():
    # p = 0.5: a positive costs log 2; a negative has p_neg 0.55 and weight 0.45^4.
    entries = losses.asymmetric_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(entries, [[np.log(2), -(0.45**4) * np.log(0.55)]], rtol=1e-6)


def test_without_focus_and_clip_it_is_cross_entropy(rng):
    x = rng.normal(size=(5, 7)).astype(np.float32)
    y = (rng.random((5, 7)) < 0.3).astype(np.float32)
    bce = y * np.log1p(np.exp(-x)) + (1 - y) * np.log1p(np.exp(x))
    np.testing.assert_allclose(
        losses.asymmetric_loss(x, y, gamma_neg=0, gamma_pos=0, clip=0), bce, rtol=1e-5, atol=1e-6
    )


def test_a_negative_below_the_clip_is_free():
    logits = jnp.full((1, 1), -4.0)
    assert losses.asymmetric_loss(logits, jnp.zeros((1, 1))) == 0


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_extreme_logits_stay_finite_in_float32(dtype):
    logits = jnp.array([[-60000.0, -18, 0, 18, 60000]], dtype)
    for labels in (jnp.zeros((1, 5)), jnp.ones((1, 5))):
        entries, gradient = jax.value_and_grad(lambda x, y=labels: losses.asymmetric_loss(x, y).sum())(logits)
        assert entries.dtype == jnp.float32
        assert np.isfinite(entries)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
