"""Losses of counterfactual generators: hand values, bounds, extremes; recorded values are in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import losses
from cfmlc_jax.errors import InputError
from cfmlc_jax.losses import text_patches


def test_values_computed_by_hand():
    np.testing.assert_allclose(losses.generator_cost(jnp.array([1.0, 3.0])), [0, 4])
    np.testing.assert_allclose(losses.critic_cost(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])), [0, 2.5])
    np.testing.assert_allclose(losses.absolute_error(jnp.ones((2, 3)), jnp.full((2, 3), -1.0)), [2, 2])
    np.testing.assert_allclose(losses.binary_entropy(jnp.array([[0.5, 0.5], [0.25, 0.5]])), [1, 0.905639])
    means = jnp.array([0.0, 0.1, 0.5, 0.95])
    masks = jnp.broadcast_to(means[:, None, None, None], (4, 2, 2, 1))
    np.testing.assert_allclose(losses.mask_size(masks), [0.1, 0, 0, 0.05], atol=1e-7)
    np.testing.assert_allclose(losses.background_size(masks), means)


def test_entropy_is_between_0_and_1_and_symmetric(rng):
    mask = rng.random((50, 4, 4, 1)).astype(np.float32)
    entropy = losses.binary_entropy(jnp.asarray(mask))
    assert (entropy > 0).all()
    assert (entropy < 1).all()
    np.testing.assert_allclose(entropy, losses.binary_entropy(1 - jnp.asarray(mask)), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_extremes_stay_finite_in_float32(dtype):
    mask = jnp.array([[0, 1e-4, 0.5, 0.9999, 1]], dtype)
    for loss in (losses.binary_entropy, losses.mask_size, losses.background_size):
        value, gradient = jax.value_and_grad(lambda m, f=loss: f(m).sum())(mask)
        assert loss(mask).dtype == jnp.float32
        assert loss(mask).shape == (1,)
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
    scores = jnp.array([-300.0, 300.0], dtype)
    assert losses.critic_cost(scores, scores).dtype == jnp.float32
    assert np.isfinite(losses.critic_cost(scores, scores)).all()


def test_content_and_style_by_hand():
    # One pixel of two channels: G = [[1, 2], [2, 4]] / 2 against 0.
    features, nothing = [jnp.array([1.0, 2.0]).reshape(1, 1, 1, 2)], [jnp.zeros((1, 1, 1, 2))]
    np.testing.assert_allclose(losses.gram(features[0]), [[[0.5, 1], [1, 2]]])
    np.testing.assert_allclose(losses.content(features, nothing, (0.5,)), [0.75])
    np.testing.assert_allclose(losses.style(features, nothing, (2.0,)), [4 * 5000 * 4.5 / 4])


def test_style_does_not_see_places(rng):
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 3)).astype(np.float32))
    rolled = jnp.roll(x, (1, 2), axis=(1, 2))
    np.testing.assert_allclose(losses.style([x], [rolled], (1.0,)), [0, 0], atol=1e-2)
    assert (losses.content([x], [rolled], (1.0,)) > 0.1).all()


def test_a_weight_for_every_map():
    maps = [jnp.zeros((1, 2, 2, 3))] * 2
    with pytest.raises(ValueError, match="shorter"):
        losses.style(maps, maps, (1.0,))


def test_bicubic_keeps_constants_and_straight_lines():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None, None], (1, 8, 8, 1))
    np.testing.assert_allclose(
        text_patches.resize_bicubic(jnp.ones((1, 8, 8, 2)), (13, 5)), np.ones((1, 13, 5, 2)), rtol=1e-6
    )
    np.testing.assert_array_equal(text_patches.resize_bicubic(ramp, (8, 8)), ramp)
    # Symmetric about its middle.
    larger = text_patches.resize_bicubic(ramp, (16, 16))[0, :, 0, 0]
    np.testing.assert_allclose(larger + larger[::-1], np.full(16, 7.0), rtol=1e-5)


def test_patches_come_from_inside_the_mask(rng):
    mask = np.zeros((1, 128, 128, 1), np.float32)
    mask[:, 20:60, 70:110] = 1
    best = np.asarray(text_patches.ranking(jnp.asarray(mask)))
    rows, columns = np.divmod(best[0], 114)
    assert best.shape == (1, 100)
    assert ((rows >= 20) & (rows <= 45) & (columns >= 70) & (columns <= 95)).all()
    picks = text_patches.draw_picks(jax.random.key(0), 1)
    assert picks.shape == (1, 36)
    assert (picks >= 0).all()
    assert (picks < 100).all()
    # The object is white: so is the grid, up to the resizing's rounding.
    grids = text_patches.patch_grids(jnp.asarray(mask), jnp.asarray(mask), picks)
    np.testing.assert_allclose(grids, np.ones_like(mask), atol=1e-5)


def test_even_patches_are_rounded_up():
    mask = jnp.asarray(np.random.default_rng(0).random((1, 32, 32, 1)), jnp.float32)
    np.testing.assert_array_equal(text_patches.ranking(mask, patch=14), text_patches.ranking(mask, patch=15))


def test_patches_that_leave_nothing_to_rank():
    with pytest.raises(InputError, match="patches of 120 pixels cannot be cut of 128; take 1 to 118"):
        text_patches.ranking(jnp.zeros((1, 8, 8, 1)), patch=120)
