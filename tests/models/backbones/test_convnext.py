"""ConvNeXts: the norm of responses, features, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cfmlc_jax
from cfmlc_jax.engine import flops
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import convnext
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear
from cfmlc_jax.models.layers.norms import ResponseNorm

tiny = functools.partial(convnext.ConvNeXt, widths=(4, 8), depths=(1, 2), drop_path=0.0)


def evaluate(model, variables, x):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)


def test_response_norm_by_hand():
    """Channels of norms 3 and 1 over the pixels: shares 3/2 and 1/2."""
    x = jnp.array([[[3.0, 1.0], [0.0, 0.0]]]).reshape(1, 1, 2, 2)
    variables = {"params": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 5.0])}}
    y = ResponseNorm().apply(variables, x)
    np.testing.assert_allclose(y[0, 0], [[3 + 4.5, 1 + 1 + 5], [0, 5]], rtol=1e-5)


def test_response_norm_of_nothing_has_a_gradient():
    variables = {"params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}
    gradient = jax.grad(lambda x: ResponseNorm().apply(variables, x).sum())(jnp.zeros((1, 2, 2, 2)))
    np.testing.assert_array_equal(gradient, 1)


@pytest.mark.parametrize("response_norm", [False, True])
def test_features_and_every_parameter_learns(rng, response_norm):
    views = jnp.asarray(rng.random((2, 2, 32, 32, 3)), jnp.float32)
    model = Classifier(backbone=tiny(response_norm=response_norm), head=linear.LinearHead(3, "none"))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), views)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        outputs = model.apply({"params": params}, views, train=True)
        return jnp.sin(outputs.whole).sum(), outputs.features

    gradients, features = gradient(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path
    assert {name: (f.shape, f.dtype) for name, f in features.items()} == {
        "stage1": ((2, 2, 8, 8, 4), jnp.float32),
        "stage2": ((2, 2, 4, 4, 8), jnp.float32),
        "map": ((2, 2, 4, 4, 8), jnp.float32),
        "pooled": ((2, 2, 8), jnp.float32),
    }
    # Both are normed, the one before and the other after the mean.
    for normed in (features["map"], features["pooled"]):
        np.testing.assert_allclose(normed.mean(axis=-1), 0, atol=1e-4)
    half = evaluate(
        tiny(response_norm=response_norm, dtype=jnp.bfloat16),
        {"params": variables["params"]["backbone"]},
        views[0],
    )
    assert (half["map"].dtype, half["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(half["map"], features["map"][0], atol=0.2)


def test_a_size_that_the_stages_do_not_halve():
    with pytest.raises(
        InputError, match=r"image_size 450 is not divisible by 32 \(convnext_tiny\); try 448 or 480"
    ):
        cfmlc_jax.create_model("convnext_tiny", 3, image_size=450)


def test_operations_are_as_published():
    """ConvNeXt-T at 224 pixels: 4.5 GMAC (Liu et al., CVPR 2022)."""
    model = cfmlc_jax.create_model("convnext_tiny", 1000, image_size=224)
    views = jnp.zeros((1, 1, 224, 224, 3))
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), views)
    traced = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, views)
    assert flops.count(traced) == pytest.approx(2 * 4.46e9, rel=0.01)
