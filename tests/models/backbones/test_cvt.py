"""Convolutional vision transformers: depthwise sums, the class token, and what all backbones owe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.models.backbones import cvt
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear
from cfmlc_jax.models.layers.norms import BatchNorm

tiny = functools.partial(cvt.CvT, widths=(4, 8), depths=(1, 1), heads=(1, 2), drop_path=0.0)


def classifier(**fields):
    return Classifier(backbone=tiny(**fields), head=linear.LinearHead(3, "none"))


def images(rng, *leading):
    return jnp.asarray(rng.random((*leading, 32, 32, 3)), jnp.float32)


def start(model, x):
    """Variables, compiled: op by op takes many times as long."""
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)


def evaluate(model, variables, x):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)


def test_quick_gelu():
    """By hand: 1/(1 + e^−1.702) = 0.845796."""
    np.testing.assert_allclose(
        cvt.quick_gelu(jnp.array([-1.0, 0.0, 1.0])), [-0.154204, 0, 0.845796], atol=1e-6
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 6, 7])
def test_depthwise_convolution(rng, stride, size):
    """Each channel is correlated with its own 3×3, as XLA's grouped convolution does it."""
    x = jnp.asarray(rng.normal(size=(2, size, size + 1, 5)), jnp.float32)
    layer = cvt.DepthwiseConv(stride, jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    expected = jax.lax.conv_general_dilated(
        x,
        variables["params"]["kernel"],
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    y = layer.apply(variables, x)
    assert y.shape == expected.shape
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_attention_is_scaled_by_the_full_width(rng):
    """A class token and one pixel, by hand: with weights of 1 and values apart from keys."""
    x = jnp.asarray(rng.normal(size=(1, 2, 4)), jnp.float32)
    norm = functools.partial(BatchNorm, dtype=jnp.float32)
    attention = cvt.Attention(heads=2, dtype=jnp.float32, norm=norm)
    variables = attention.init(jax.random.key(0), x, (1, 1), train=False)
    variables = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 1 else leaf, variables)
    params = variables["params"]

    def projected(name):
        middle = params[f"conv_proj_{name}"]["conv"]["kernel"][1, 1, 0]  # all a single pixel meets
        pixel = x[0, 1] * middle / np.sqrt(1 + 1e-5)
        tokens = np.stack([x[0, 0], pixel])
        return (tokens @ np.asarray(params[f"proj_{name}"]["kernel"])).reshape(2, 2, 2)

    q, k, v = (projected(name) for name in "qkv")
    logits = np.einsum("nad,mad->anm", q, k) / np.sqrt(4)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    y = np.einsum("anm,mad->nad", weights, v).reshape(2, 4) @ np.asarray(params["proj"]["kernel"])
    np.testing.assert_allclose(attention.apply(variables, x, (1, 1), train=False)[0], y, rtol=1e-4, atol=1e-5)


def test_features(rng):
    x = images(rng, 3)
    variables = start(tiny(), x)
    features = evaluate(tiny(), variables, x)
    assert {name: (f.shape, f.dtype) for name, f in features.items()} == {
        "stage1": ((3, 8, 8, 4), jnp.float32),
        "stage2": ((3, 4, 4, 8), jnp.float32),
        "map": ((3, 4, 4, 8), jnp.float32),
        "pooled": ((3, 8), jnp.float32),
    }
    np.testing.assert_allclose(features["pooled"], features["map"].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    half = tiny(dtype=jnp.bfloat16, norm=functools.partial(BatchNorm, dtype=jnp.bfloat16))
    half = evaluate(half, variables, x)
    assert (half["map"].dtype, half["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    # Normed: of the size of 1.
    np.testing.assert_allclose(half["pooled"], features["pooled"], atol=0.03)


def test_the_class_token_is_attended_to(rng):
    x = images(rng, 1)
    variables = start(tiny(), x)
    stage = variables["params"]["stage1"]
    # Normed, then attended to: only its direction tells.
    token = stage["cls_token"].at[0, 0, 0].add(10)
    other = {**variables["params"], "stage1": {**stage, "cls_token": token}}
    before = evaluate(tiny(), variables, x)
    after = evaluate(tiny(), {**variables, "params": other}, x)
    assert jnp.abs(after["map"] - before["map"]).max() > 1e-4
    np.testing.assert_array_equal(after["stage1"], before["stage1"])


def test_mapped_over_images_is_one_batch(rng):
    """[b, v] mapped over images equals [1, b·v], statistics and gradients included."""
    views = images(rng, 2, 3)
    model = classifier()
    variables = start(model, views)

    @jax.jit
    def run(params, views):
        def loss(params):
            outputs, updated = model.apply(
                variables | {"params": params}, views, train=True, mutable=["batch_stats"]
            )
            return jnp.sin(outputs.whole).sum(), (outputs.features["map"], updated)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, (ours, stats)), gradient = run(variables["params"], views)
    (_, (theirs, folded_stats)), folded_gradient = run(variables["params"], views.reshape(1, 6, 32, 32, 3))
    np.testing.assert_allclose(ours.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, folded_stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, folded_gradient
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all(), path


def test_training_drops_paths_of_views(rng):
    x = images(rng, 1).repeat(8, axis=0)[None]
    model = classifier(drop_path=0.5, depths=(1, 2))  # the first block drops nothing
    variables = start(model, x)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    outputs, _ = train(variables, x, rngs={"dropout": jax.random.key(1)})
    first = outputs.features["stage1"][0]  # only the last stage drops
    np.testing.assert_allclose(first, first[:1].repeat(8, axis=0), atol=1e-5)
    assert len(np.unique(np.asarray(outputs.features["pooled"][0, :, 0]))) > 1
