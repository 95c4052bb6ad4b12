"""Swin transformers: windows, their shift and mask, and what all backbones owe."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import swin
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear

# Maps of 8² tokens, in windows of 4 that the second block shifts, and of 4², a single window.
tiny = functools.partial(swin.Swin, width=8, heads=(2, 4), window=4, depths=(2, 1))


def images(rng, *leading):
    return jnp.asarray(rng.random((*leading, 32, 32, 3)), jnp.float32)


def start(model, x):
    """Variables, compiled: op by op takes many times as long."""
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)


def evaluate(model, variables, x):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)


def test_windows_are_row_by_row():
    x = jnp.arange(24).reshape(1, 4, 6, 1)
    windows = swin.partition(x, 2)
    assert windows.shape == (1, 6, 4, 1)
    np.testing.assert_array_equal(windows[0, 1, :, 0], [2, 3, 8, 9])
    np.testing.assert_array_equal(windows[0, 3, :, 0], [12, 13, 18, 19])
    np.testing.assert_array_equal(swin.join(windows, x.shape), x)


def test_relative_positions_of_a_window_of_two():
    """Rows of the table by (dy + 1)·3 + dx + 1; tokens: upper left, upper right, lower left, lower right."""
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    index = swin.relative_position_index(2)
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, expected)


def test_a_mask_keeps_the_ends_of_the_map_apart():
    """Windows of 2 in 4×4, rolled by 1: the last row and column are the first ones of the map."""
    mask = swin.shift_mask(4, 4, 2)
    assert mask.dtype == np.float32
    right = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    lower = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    corner = 1 - np.eye(4)
    np.testing.assert_array_equal(mask, -100.0 * np.array([np.zeros((4, 4)), right, lower, corner]))


@pytest.mark.parametrize(("shifted", "seen"), [(False, (0, 4)), (True, (2, 6))])
def test_attention_reaches_the_tokens_of_a_window(rng, shifted, seen):
    """A token of an 8×8 map is seen by its window, shifted by two or not, and by no other token."""
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 8)), jnp.float32)
    block = swin.Block(heads=2, window=4, shifted=shifted, drop_path=0.0, dtype=jnp.float32)
    variables = start(block, x)
    # The kernels start small; with larger ones attention differs from zero.
    variables = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 1 else leaf, variables)
    other = x.at[0, 3, 3].add(jnp.arange(8.0))
    changed = evaluate(block, variables, other) != evaluate(block, variables, x)
    expected = np.zeros((8, 8), bool)
    expected[slice(*seen), slice(*seen)] = True
    np.testing.assert_array_equal(changed[0].any(axis=-1), expected)


def test_shifted_windows_do_not_wrap_around(rng):
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 8)), jnp.float32)
    block = swin.Block(heads=2, window=4, shifted=True, drop_path=0.0, dtype=jnp.float32)
    variables = start(block, x)
    variables = jax.tree.map(lambda leaf: leaf * 20 if leaf.ndim > 1 else leaf, variables)
    other = x.at[0, 0, 0].add(jnp.arange(8.0))
    changed = evaluate(block, variables, other) != evaluate(block, variables, x)
    expected = np.zeros((8, 8), bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(changed[0].any(axis=-1), expected)


def test_merging_takes_the_lower_pixel_second():
    """Identity weights show the order of channels: down, then right, as published weights have it."""
    x = jnp.arange(16.0).reshape(1, 2, 2, 4) ** 2
    merging = swin.PatchMerging(jnp.float32)
    params = merging.init(jax.random.key(0), x)["params"]
    kernel = params["reduction"]["kernel"]
    assert kernel.shape == (16, 8)
    stacked = np.concatenate([x[0, 0, 0], x[0, 1, 0], x[0, 0, 1], x[0, 1, 1]])
    normed = (stacked - stacked.mean()) / np.sqrt(stacked.var() + 1e-5)
    y = merging.apply({"params": params}, x)
    np.testing.assert_allclose(y[0, 0, 0], normed @ np.asarray(kernel), rtol=1e-4, atol=1e-6)


def test_features(rng):
    x = images(rng, 3)
    variables = start(tiny(), x)
    features = evaluate(tiny(), variables, x)
    assert {name: (f.shape, f.dtype) for name, f in features.items()} == {
        "stage1": ((3, 8, 8, 8), jnp.float32),
        "stage2": ((3, 4, 4, 16), jnp.float32),
        "map": ((3, 4, 4, 16), jnp.float32),
        "pooled": ((3, 16), jnp.float32),
    }
    np.testing.assert_allclose(features["pooled"], features["map"].mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    half = evaluate(tiny(dtype=jnp.bfloat16), variables, x)
    assert (half["map"].dtype, half["pooled"].dtype) == (jnp.bfloat16, jnp.float32)
    # Normed: of the size of 1.
    np.testing.assert_allclose(half["pooled"], features["pooled"], atol=0.03)


def test_mapped_over_images_is_the_same(rng):
    views = images(rng, 2, 3)
    model = Classifier(backbone=tiny(), head=linear.LinearHead(3, "none"))
    variables = start(model, views)
    mapped = evaluate(model, variables, views).features["map"]
    backbone = {"params": variables["params"]["backbone"]}
    together = evaluate(tiny(), backbone, views.reshape(6, 32, 32, 3))["map"]
    np.testing.assert_allclose(mapped.reshape(together.shape), together, rtol=1e-5, atol=1e-5)


def test_gradients(rng):
    views = images(rng, 2, 2)
    model = Classifier(backbone=tiny(drop_path=0.0), head=linear.LinearHead(3, "none"))
    variables = start(model, views)

    def loss(params):
        return jnp.sin(model.apply({"params": params}, views, train=True).whole).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all(), path
        assert (leaf != 0).any(), path


def test_training_drops_paths_of_views(rng):
    x = images(rng, 1).repeat(8, axis=0)
    model = tiny(drop_path=0.5)
    variables = start(model, x)
    train = jax.jit(functools.partial(model.apply, train=True))
    pooled = train(variables, x, rngs={"dropout": jax.random.key(1)})["pooled"]
    assert len(np.unique(np.asarray(pooled[:, 0]))) > 2
    evaluated = evaluate(model, variables, x)["pooled"]
    np.testing.assert_allclose(evaluated, evaluated[:1].repeat(8, axis=0), atol=1e-6)


def test_images_that_windows_do_not_tile():
    x = jnp.zeros((1, 48, 48, 3))
    with pytest.raises(InputError, match=r"image size 48 is not divisible by 32, .*try 32 or 64"):
        jax.eval_shape(functools.partial(tiny().init, train=False), jax.random.key(0), x)


def test_entries_that_follow_from_the_architecture():
    """A shifted block has a mask, unless its map is a single window."""
    tables = {
        f"layers.{stage}.blocks.{i}.attn.relative_position_bias_table": (49, 2 * 2**stage)
        for stage in (0, 1)
        for i in (0, 1)
    }
    indices = {key.replace("bias_table", "index") for key in tables}
    masks = swin.derived(tables, 32)
    assert set(masks) == indices | {"layers.0.blocks.1.attn_mask"}
    np.testing.assert_array_equal(masks["layers.0.blocks.1.attn_mask"], swin.shift_mask(8, 8, 4))
    larger = swin.derived({f"backbone.0.{key}": np.zeros(shape) for key, shape in tables.items()}, 64)
    assert larger["backbone.0.layers.1.blocks.1.attn_mask"].shape == (4, 16, 16)
    with pytest.raises(InputError, match="image size 80 is not divisible by 32"):
        swin.derived(tables, 80)
