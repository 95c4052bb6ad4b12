import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.models.layers.normalise import CIFAR, IMAGENET, INATURALIST, standardise


@pytest.mark.parametrize("statistics", [CIFAR, IMAGENET, INATURALIST])
def test_pixels_with_these_statistics_get_mean_0_and_deviation_1(rng, statistics):
    noise = rng.standard_normal((2, 40, 40, 3))
    noise = (noise - noise.mean(axis=(0, 1, 2))) / noise.std(axis=(0, 1, 2))
    pixels = np.asarray(statistics.mean) + noise * np.asarray(statistics.deviation)
    np.testing.assert_allclose(standardise(pixels, statistics), noise, atol=1e-12)


def test_by_hand_and_under_jit():
    """White in CIFAR's green: (1 − 0.4822) / 0.1994 = 2.596790."""
    pixels = jnp.ones((1, 1, 2, 2, 3), jnp.float32)
    actual = jax.jit(lambda x: standardise(x, CIFAR))(pixels)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual[0, 0, 0, 0], [2.514088, 2.596790, 2.753731], rtol=1e-6)
