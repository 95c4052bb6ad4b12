import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers.normalise import (
    CIFAR,
    HALF,
    IMAGENET,
    INATURALIST,
    NORMALISATIONS,
    Normalisation,
    parse,
    standardise,
    text_of,
)


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


@pytest.mark.parametrize(
    "normalisation", [None, *NORMALISATIONS.values(), Normalisation((0.48145466, 0, 1), (0.1, 2, 3))]
)
def test_a_text_names_a_normalisation(normalisation):
    assert parse(text_of(normalisation)) == normalisation


def test_texts_of_normalisations():
    assert text_of(Normalisation((0.5,) * 3, (0.5,) * 3)) == "half"
    assert text_of(Normalisation((0,) * 3, (1,) * 3)) == ""
    assert parse("0.5,0.5,0.5/0.5,.5,5e-1") == HALF
    assert parse("auto") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("imagnet", "'imagnet' is not one of '', auto, cifar, .*; did you mean 'imagenet'"),
        ("1,2,3", "is not one of"),
        ("1,2/3,4", "is not six numbers"),
        ("1,2,3/4,5,6/7,8,9", "is not six numbers"),
        ("1,2,nan/4,5,6", "is not six numbers"),
        ("1,2,3/4,5,x", "is not six numbers"),
        ("1,2,3/4,5,-1", "has a deviation of -1; each must be above 0"),
    ],
)
def test_other_texts_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse(text)
