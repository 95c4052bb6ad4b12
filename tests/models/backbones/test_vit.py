"""Vision transformers: positions at other sizes, rotations, tokens, views of several sizes, and all heads."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cfmlc_jax
from cfmlc_jax.engine import flops
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import vit
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear, map_cells, ml_decoder, query2label

# Positions are learned for maps of 3², and images of 32 pixels have maps of 4².
tiny = functools.partial(vit.ViT, width=16, depth=4, heads=2, patch=8, grid=3, drop_path=0.0)
rotary = functools.partial(tiny, grid=0, positions=vit.ROTARY, registers=2, pooled=vit.MEAN)


def images(rng, *leading, size=32):
    return jnp.asarray(rng.random((*leading, size, size, 3)), jnp.float32)


def start(model, x):
    """Variables, compiled: op by op takes many times as long. Kernels start small, and so do class tokens."""
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)
    return jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 1 else leaf, variables)


def evaluate(model, variables, x):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)


@pytest.mark.parametrize(("old", "new"), [(4, 7), (9, 4), (5, 5), (3, 1)])
def test_cubic_weights_are_those_of_jax(old, new):
    expected = jax.image.resize(jnp.eye(old), (new, old), "cubic", antialias=True)
    np.testing.assert_allclose(vit.cubic_weights(old, new), expected, atol=1e-6)


def test_cubic_weights_by_hand():
    """Two samples to four, a quarter and three quarters of the way between them, and as far outside."""
    near, far = (1.5 * x**3 - 2.5 * x**2 + 1 for x in (0.25, 0.75))
    # The first new sample is at −1/4: outside of the old ones, a quarter from the first and 5/4 from the second.
    beyond = -0.5 * 1.25**3 + 2.5 * 1.25**2 - 4 * 1.25 + 2
    expected = [[near, beyond], [near, far], [far, near], [beyond, near]]
    expected = np.array(expected) / np.sum(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vit.cubic_weights(2, 4), expected, rtol=1e-6)


def test_positions_of_the_learned_size_are_as_they_are(rng):
    table = jnp.asarray(rng.normal(size=(3, 3, 2)))
    assert vit.resampled(table, 3, 3) is table
    assert vit.resampled(table, 2, 5).shape == (2, 5, 2)


def test_angles_by_hand():
    """A map of 1×2 tokens, heads of 4 features: the row is 0, columns are ±1/2, the wavelength is 1."""
    sine, cosine = vit.rotary_angles(1, 2, 4, before=1)
    np.testing.assert_allclose(cosine, [[1, 1, 1, 1], [1, -1, 1, -1], [1, -1, 1, -1]], atol=1e-6)
    np.testing.assert_allclose(sine, np.zeros((3, 4)), atol=1e-6)
    # Of 8 features, the second wavelength is √100.
    sine, _ = vit.rotary_angles(2, 1, 8, before=0)
    np.testing.assert_allclose(
        sine[:, :4], np.sin([[-np.pi, -np.pi / 10, 0, 0], [np.pi, np.pi / 10, 0, 0]]), atol=1e-6
    )


def test_a_rotation_turns_pairs(rng):
    x = jnp.asarray(rng.normal(size=(1, 1, 1, 4)), jnp.float32)
    quarter = (jnp.ones((1, 4)), jnp.zeros((1, 4)))
    np.testing.assert_allclose(
        vit.rotate(x, *quarter)[0, 0, 0], x[0, 0, 0, jnp.array([2, 3, 0, 1])] * jnp.array([-1, -1, 1, 1.0])
    )
    assert vit.rotate(x.astype(jnp.bfloat16), *quarter).dtype == jnp.bfloat16


def test_features(rng):
    x = images(rng, 3)
    variables = start(tiny(), x)
    features = evaluate(tiny(), variables, x)
    assert {name: (f.shape, f.dtype) for name, f in features.items()} == {
        **{f"stage{i}": ((3, 4, 4, 16), jnp.float32) for i in (1, 2, 3, 4)},
        "map": ((3, 4, 4, 16), jnp.float32),
        "pooled": ((3, 16), jnp.float32),
    }
    half = evaluate(tiny(dtype=jnp.bfloat16), variables, x)
    assert (half["map"].dtype, half["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(half["pooled"], features["pooled"], atol=0.2)  # normed: of the size of 1
    mean = evaluate(tiny(pooled=vit.MEAN), variables, x)
    np.testing.assert_allclose(mean["pooled"], mean["map"].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("create", [tiny, rotary])
def test_a_token_knows_its_place(rng, create):
    """Attention alone would give the same features for an image with its squares in another order."""
    x = images(rng, 1)
    variables = start(create(), x)
    turned = x[:, ::-1].reshape(1, 4, 8, 32, 3)[:, :, ::-1].reshape(x.shape)  # rows of squares, not of pixels
    before, after = (evaluate(create(), variables, each)["pooled"] for each in (x, turned))
    assert np.abs(before - after).max() > 1e-3


def test_views_of_two_sizes_and_every_parameter_learns(rng):
    """As PAT-T with patches smaller than the whole view."""
    views = [images(rng, 2, 1), images(rng, 2, 4, size=16)]
    for create in (tiny, functools.partial(rotary, layer_scale=0.1)):
        model = Classifier(backbone=create(depth=1), head=linear.LinearHead(3, "cross"))
        variables = start(model, views)

        @jax.jit
        @jax.grad
        def gradient(params, model=model):
            outputs = model.apply({"params": params}, views, train=True)
            pooled = jnp.sin(jax.nn.softmax(outputs.attention, axis=1) * outputs.score)
            return pooled.sum() + jnp.sin(outputs.whole).sum()

        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
            assert jnp.isfinite(leaf).all(), path
            assert (leaf != 0).any(), path


@pytest.mark.parametrize(
    "head",
    [
        query2label.Query2Label(3, "cross"),
        ml_decoder.MLDecoder(3, "cross"),
        map_cells.MapCells(3, "cross", "map"),
        map_cells.MapCells(3, "cross", "stage2"),
    ],
)
def test_heads_of_maps(rng, head):
    views = images(rng, 2, 2)
    cells = isinstance(head, map_cells.MapCells)
    model = Classifier(tiny(), linear.LinearHead(3, "none") if cells else head, head if cells else None)
    outputs = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), views, train=False)[0])
    if cells:
        assert [each.shape for each in outputs.cells] == [(2, 2, 16, 3)] * 2
    else:
        assert outputs.whole.shape == outputs.score.shape == (2, 2, 3)


def test_sizes_that_squares_do_not_tile(rng):
    with pytest.raises(
        InputError,
        match=r"image_size 450 is not divisible by 14 \(vit_small_patch14_dinov2\); try 448 or 462",
    ):
        cfmlc_jax.create_model("vit_small_patch14_dinov2", 3, image_size=450)
    message = "image size 20 is not divisible by 8, the side of the squares that become tokens; try 16 or 24"
    with pytest.raises(InputError, match=re.escape(message)):
        jax.eval_shape(lambda: tiny().init(jax.random.key(0), images(rng, 1, size=20), train=False))


def test_operations_are_as_published():
    """ViT-S/16 at 224 pixels: 4.6 GMAC (Touvron et al., ICML 2021); of two operations each."""
    model = cfmlc_jax.create_model("vit_small_patch16_224", 1000, image_size=224)
    views = jnp.zeros((1, 1, 224, 224, 3))
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), views)
    traced = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, views)
    assert flops.count(traced) == pytest.approx(2 * 4.6e9, rel=0.01)
