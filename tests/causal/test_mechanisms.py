"""Mechanisms of an image: composition, shuffling, offsets, masks, truncated noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.causal import mechanisms


def test_compose_by_hand():
    mask = jnp.array([0.0, 0.25, 1.0]).reshape(1, 1, 3, 1)
    image = mechanisms.compose(mask, jnp.full((1, 1, 3, 3), 4.0), jnp.zeros((1, 1, 3, 3)))
    np.testing.assert_allclose(image[0, 0, :, 0], [0, 1, 4])
    assert image.shape == (1, 1, 3, 3)


def test_a_composed_pixel_is_between_its_parts(rng):
    foreground, background = rng.normal(size=(2, 3, 5, 5, 3))
    image = mechanisms.compose(rng.random((3, 5, 5, 1)), foreground, background)
    assert (image <= np.maximum(foreground, background) + 1e-12).all()
    assert (image >= np.minimum(foreground, background) - 1e-12).all()
    same = mechanisms.compose(rng.random((3, 5, 5, 1)), foreground, foreground)
    np.testing.assert_allclose(same, foreground, rtol=1e-12)


def test_shuffling_is_a_crop_of_tiles_and_a_roll(rng):
    textures = rng.normal(size=(4, 8, 8, 3)).astype(np.float32)
    offsets = np.array([[0, 0], [8, 0], [3, 7], [8, 8]])
    shuffled = mechanisms.shuffle(jnp.asarray(textures), offsets)
    for texture, (row, column), actual in zip(textures, offsets, shuffled):
        tiled = np.tile(texture, (2, 2, 1))
        np.testing.assert_array_equal(actual, tiled[row : row + 8, column : column + 8])
        np.testing.assert_array_equal(actual, np.roll(texture, (-row, -column), axis=(0, 1)))


def test_shuffling_hands_every_pixel_its_gradient(rng):
    textures, weights = rng.normal(size=(2, 2, 6, 6, 1)).astype(np.float32)
    offsets = jnp.array([[1, 5], [6, 2]])
    gradient = jax.grad(lambda x: (weights * mechanisms.shuffle(x, offsets)).sum())(jnp.asarray(textures))
    np.testing.assert_array_equal(gradient, mechanisms.shuffle(jnp.asarray(weights), -offsets))


def test_offsets_reach_an_odd_size_too():
    offsets = np.asarray(mechanisms.draw_offsets(jax.random.key(0), 400, 5))
    assert (offsets.min(), offsets.max()) == (0, 5)


def test_an_offset_of_zero_is_twice_as_likely():
    offsets = mechanisms.draw_offsets(jax.random.key(0), 40_000, 4)
    assert offsets.shape == (40_000, 2)
    shares = np.bincount(np.asarray(offsets).ravel() % 4) / offsets.size
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.2, 0.2], atol=0.01)


def test_a_clamped_mask_has_no_gradient_outside():
    values = jnp.array([-2.0, 0.3, 1.7])
    clamped, gradient = (
        mechanisms.clamp_mask(values),
        jax.grad(lambda m: mechanisms.clamp_mask(m).sum())(values),
    )
    np.testing.assert_allclose(clamped, [1e-4, 0.3, 0.9999])
    np.testing.assert_array_equal(gradient, [0, 1, 0])


@pytest.mark.parametrize("truncation", [1.0, 0.5])
def test_truncated_noise(truncation):
    x = mechanisms.truncated_noise(jax.random.key(0), (20_000,), truncation)
    assert x.dtype == jnp.float32
    assert jnp.abs(x).max() <= 2 * truncation
    # Deviation of a standard normal cut off at ±2.
    np.testing.assert_allclose([x.mean(), x.std()], [0, 0.8796 * truncation], atol=0.02)


def test_one_input_for_all_mechanisms():
    assert mechanisms.same_for_all(3) == {"shape": 3, "texture": 3, "background": 3}
