"""Single-label losses: golden values of the reference, hand values, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import losses
from cfmlc_jax.errors import InputError

GOLDEN = "longtail/losses.npz"


def one_hot(labels, k):
    return np.eye(k, dtype=np.uint8)[labels]


def test_golden_values(golden):
    z = golden(GOLDEN)
    labels = one_hot(z["labels"], 10)
    np.testing.assert_allclose(losses.cross_entropy(z["logits"], labels).mean(), z["ce"], rtol=0, atol=1e-5)
    value, gradient = jax.value_and_grad(lambda x: losses.focal(x, labels).mean())(z["logits"])
    np.testing.assert_allclose(value, z["focal"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradient, z["focal_grad"], rtol=0, atol=1e-6)


def test_golden_weighted(golden):
    z = golden(GOLDEN)
    weights = losses.class_weights(z["counts"])
    np.testing.assert_allclose(weights, z["weights"], rtol=0, atol=1e-5)
    logits = 2 * np.random.RandomState(7).standard_normal((16, 1000)).astype(np.float32)
    values = losses.weighted_cross_entropy(logits, one_hot(z["labels1000"], 1000), weights)
    np.testing.assert_allclose(values.mean(), z["weighted"], rtol=0, atol=1e-5)


def test_values_computed_by_hand():
    logits, labels = jnp.zeros((1, 4)), jnp.array([[0, 1, 0, 0]])
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), [np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(losses.focal(logits, labels, 3.0), [0.75**3 * np.log(4)], rtol=1e-6)
    np.testing.assert_allclose(losses.class_weights([10, 10 / np.e, 1]), [1, 2, 1 + np.log(10)], rtol=1e-12)


def test_focal_without_focus_is_cross_entropy(rng):
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    labels = one_hot([0, 1, 2, 0, 1], 3)
    np.testing.assert_array_equal(losses.focal(logits, labels, 0.0), losses.cross_entropy(logits, labels))


def test_mean_of_weighted_values_is_the_weighted_mean(rng):
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    classes, weights = np.array([0, 2, 2, 1]), np.array([1.0, 2.0, 5.0])
    labels = one_hot(classes, 3)
    cost, w = np.asarray(losses.cross_entropy(logits, labels)), weights[classes]
    values = losses.weighted_cross_entropy(logits, labels, weights)
    np.testing.assert_allclose(values.mean(), (w * cost).sum() / w.sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_stay_finite_in_float32(dtype, label):
    logits = jnp.array([[-30000.0, 30000.0], [0.0, 20.0], [20.0, 0.0]], dtype)
    labels = one_hot([label] * 3, 2)
    weighted = lambda x, y: losses.weighted_cross_entropy(x, y, np.array([1.0, 3.0]))  # noqa: E731
    for loss in (losses.cross_entropy, losses.focal, weighted):
        values, gradient = jax.value_and_grad(lambda x, f=loss: f(x, labels).sum())(logits)
        assert loss(logits, labels).dtype == jnp.float32
        assert loss(logits, labels).shape == (3,)
        assert np.isfinite(values)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_a_class_without_images():
    with pytest.raises(InputError, match=r"2 classes have no training image \(the first: class 1\)"):
        losses.class_weights([5, 0, 3, 0])
