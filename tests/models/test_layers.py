"""Layers against the textbook: convolution, joint batch statistics, pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.images import IMAGES
from cfmlc_jax.models.layers.linear import Dense, Linear
from cfmlc_jax.models.layers.norms import BatchNorm, LayerNorm
from cfmlc_jax.models.layers.pooling import max_pool
from cfmlc_jax.models.layers.residual import DropPath, add_relu


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 8, 9])
def test_convolution_is_a_padded_correlation(rng, kernel, stride, size):
    x = jnp.asarray(rng.normal(size=(2, size, size, 3)), jnp.float32)
    layer = Conv(5, kernel, stride)
    variables = layer.init(jax.random.key(0), x)
    pad = kernel // 2
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    expected = np.einsum("bhwcij,ijcd->bhwd", windows, variables["params"]["kernel"])[:, ::stride, ::stride]
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=2e-5)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (2, 1), (4, 2), (3, 1)])
def test_gradients_on_maps_smaller_than_the_kernel_are_those_of_the_convolution(rng, size, stride):
    x = jnp.asarray(rng.normal(size=(3, 2, size, size, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32)

    def ours(kernel, x):
        layer = Conv(5, 3, stride)
        run = jax.vmap(lambda one: layer.apply({"params": {"kernel": kernel}}, one), axis_name=IMAGES)
        return jnp.sin(run(x)).sum()

    def theirs(kernel, x):
        flat = x.reshape(-1, *x.shape[2:])
        padding, layout = [(1, 1), (1, 1)], ("NHWC", "HWIO", "NHWC")
        return jnp.sin(
            jax.lax.conv_general_dilated(flat, kernel, (stride, stride), padding, dimension_numbers=layout)
        ).sum()

    for mine, reference in zip(jax.grad(ours, (0, 1))(kernel, x), jax.grad(theirs, (0, 1))(kernel, x)):
        np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=1e-5)


class Mapped(nn.Module):
    """A layer mapped over images, as the classifier maps its backbone."""

    inner: nn.Module

    def __call__(self, x, *, train):
        run = nn.vmap(
            lambda inner, one: inner(one, train=train),
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False},
            axis_name=IMAGES,
        )
        return run(self.inner, x)


def test_statistics_are_joint_over_images_and_views_and_unbiased(rng):
    x = jnp.asarray(rng.normal(3, 2, size=(4, 5, 3, 3, 2)), jnp.float32)
    layer = Mapped(BatchNorm())
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = np.asarray(x, np.float64).reshape(-1, 2)
    np.testing.assert_allclose(y, (np.asarray(x) - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), atol=1e-5)
    stats = updated["batch_stats"]["inner"]
    np.testing.assert_allclose(stats["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics(rng):
    x = jnp.asarray(rng.normal(size=(2, 1, 4, 4, 3)), jnp.float32)
    layer = Mapped(BatchNorm())
    stats = {"mean": jnp.array([1.0, 2, 3]), "var": jnp.array([4.0, 5, 6])}
    params = {"scale": jnp.array([1.0, 2, 3]), "bias": jnp.array([0.0, 1, 2])}
    y = layer.apply({"params": {"inner": params}, "batch_stats": {"inner": stats}}, x, train=False)
    expected = (np.asarray(x) - np.array([1, 2, 3])) / np.sqrt(np.array([4, 5, 6]) + 1e-5) * np.array(
        [1, 2, 3]
    ) + np.array([0, 1, 2])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_variance_far_below_the_mean_keeps_its_digits(rng):
    x = jnp.asarray(1000 + 0.1 * rng.normal(size=(8, 1, 4, 4, 1)), jnp.float32)
    layer = Mapped(BatchNorm())
    y, _ = layer.apply(layer.init(jax.random.key(0), x, train=False), x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.std(), 1, atol=0.01)


def test_statistics_of_half_precision_are_float32(rng):
    x = jnp.asarray(rng.normal(size=(2, 2, 4, 4, 3)), jnp.bfloat16)
    layer = Mapped(BatchNorm(dtype=jnp.bfloat16))
    variables = layer.init(jax.random.key(0), x, train=False)
    y, updated = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["inner"]["mean"].dtype == jnp.float32


@pytest.mark.parametrize("size", [6, 7, 8])
def test_pooling_and_its_gradient_are_those_of_windows(rng, size):
    x = jnp.asarray(rng.normal(size=(2, size, size, 3)), jnp.float32)

    def windows(x):
        return jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
        )

    np.testing.assert_array_equal(max_pool(x), windows(x))
    weights = jnp.asarray(rng.normal(size=windows(x).shape), jnp.float32)
    ours, theirs = (jax.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (max_pool, windows))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_linear_starts_within_pytorchs_bounds_and_computes_in_float32(rng):
    x = jnp.asarray(rng.normal(size=(3, 4, 100)), jnp.bfloat16)
    layer = Linear(50)
    variables = layer.init(jax.random.key(0), x)
    for leaf in jax.tree.leaves(variables):
        assert np.abs(leaf).max() <= 0.1
        np.testing.assert_allclose(leaf.std(), 0.1 / np.sqrt(3), rtol=0.15)
    y = layer.apply(variables, x)
    assert (y.shape, y.dtype) == ((3, 4, 50), jnp.float32)
    expected = np.asarray(x, np.float32) @ np.asarray(variables["params"]["kernel"]) + np.asarray(
        variables["params"]["bias"]
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_norm_are_those_of_its_formula(rng):
    x = jnp.asarray(rng.normal(size=(2, 2, 3, 3, 2)), jnp.float32)
    layer = Mapped(BatchNorm())
    variables = layer.init(jax.random.key(0), x, train=False)

    def scalar(x):
        y, _ = layer.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sin(y).sum()

    check_grads(scalar, (x,), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def plain_pointwise(x, kernel):
    return jnp.einsum("...c,cd->...d", x, kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pointwise_gradients_mapped_over_images_are_those_of_the_product(rng, stride, dtype):
    x = jnp.asarray(rng.normal(size=(3, 2, 4, 5, 6)), dtype)
    layer = Conv(7, 1, stride, dtype)
    variables = layer.init(jax.random.key(0), x[0])
    kernel = variables["params"]["kernel"]

    def ours(kernel, x):
        run = jax.vmap(lambda one: layer.apply({"params": {"kernel": kernel}}, one), axis_name=IMAGES)
        return jnp.sin(run(x).astype(jnp.float32)).sum()

    def theirs(kernel, x):
        # In float32 of the same values: in bfloat16 JAX 0.12 adds with less care than ours.
        y = plain_pointwise(
            x[:, :, ::stride, ::stride].astype(jnp.float32), kernel[0, 0].astype(dtype).astype(jnp.float32)
        )
        return jnp.sin(y).sum()

    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for mine, reference in zip(jax.grad(ours, (0, 1))(kernel, x), jax.grad(theirs, (0, 1))(kernel, x)):
        assert mine.dtype == reference.dtype
        np.testing.assert_allclose(
            np.asarray(mine, np.float32), np.asarray(reference, np.float32), **tolerance
        )


def test_pointwise_layers_train_without_a_map_and_with_a_kernel_per_image(rng):
    x = jnp.asarray(rng.normal(size=(3, 2, 4, 4, 5)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(3, 1, 1, 5, 6)), jnp.float32)

    def ours(kernel, x):
        return jnp.sin(Conv(6, 1).apply({"params": {"kernel": kernel}}, x)).sum()

    def theirs(kernel, x):
        return jnp.sin(plain_pointwise(x, kernel[0, 0])).sum()

    np.testing.assert_allclose(
        jax.grad(ours)(kernels[0], x[0]), jax.grad(theirs)(kernels[0], x[0]), rtol=1e-5, atol=1e-5
    )
    mapped = jax.grad(lambda kernels: jax.vmap(ours, axis_name=IMAGES)(kernels, x).sum())(kernels)
    np.testing.assert_allclose(mapped, jax.vmap(jax.grad(theirs))(kernels, x), rtol=1e-5, atol=1e-5)


def test_the_end_of_a_block_is_the_rectified_sum_bit_for_bit(rng):
    x, y = (
        jnp.asarray(rng.normal(size=10_000) * 10.0 ** rng.integers(-6, 6, 10_000), jnp.float32) for _ in "xy"
    )
    y = y.at[:100].set(-x[:100])
    np.testing.assert_array_equal(add_relu(x, y), jax.nn.relu(x + y))
    weights = jnp.asarray(rng.normal(size=10_000), jnp.float32)
    ours = jax.grad(lambda x, y: (add_relu(x, y) * weights).sum(), (0, 1))(x, y)
    theirs = jax.grad(lambda x, y: (jax.nn.relu(x + y) * weights).sum(), (0, 1))(x, y)
    np.testing.assert_array_equal(ours, theirs)


def test_the_end_of_a_block_lets_nan_through():
    nan = jnp.array([jnp.nan, 1.0])
    assert np.isnan(add_relu(nan, nan[::-1])).all()


def test_overlapping_patches(rng):
    """7×7 at stride 4 with two pixels of padding, and a bias, as a CvT embeds them."""
    x = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
    layer = Conv(5, 7, 4, padding=2, use_bias=True)
    variables = layer.init(jax.random.key(0), x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert 0 < np.abs(bias).max() <= (7 * 7 * 3) ** -0.5
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), axis=(1, 2))
    expected = np.einsum("bhwcij,ijcd->bhwd", windows, kernel)[:, ::4, ::4] + np.asarray(bias)
    assert expected.shape == (2, 4, 4, 5)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=2e-5)


class Wrapped(nn.Module):
    """A layer that knows no training, for `Mapped`."""

    layer: nn.Module

    def __call__(self, x, *, train):
        return self.layer(x)


def test_a_dense_layer_is_the_same_mapped_over_images(rng):
    """The result and both gradients; mapped, all images are one matrix product."""
    x = jnp.asarray(rng.normal(size=(4, 3, 5, 6)), jnp.float32)
    layer = Dense(7)
    variables = layer.init(jax.random.key(0), x)
    params = variables["params"]
    assert 0 < np.abs(params["bias"]).max() <= 6**-0.5
    np.testing.assert_allclose(
        layer.apply(variables, x),
        np.asarray(x) @ np.asarray(params["kernel"]) + np.asarray(params["bias"]),
        atol=1e-6,
    )
    mapped = Mapped(Wrapped(layer))

    def alone(params, x):
        return jnp.sin(layer.apply({"params": params}, x)).sum()

    def over_images(params, x):
        return jnp.sin(mapped.apply({"params": {"inner": {"layer": params}}}, x, train=True)).sum()

    expected, actual = (jax.grad(run, argnums=(0, 1))(params, x) for run in (alone, over_images))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


def test_a_layer_norm_by_hand():
    """Of 1, 3: mean 2, variance 1. The statistics of bfloat16 are float32: 300 and 302 differ."""
    x = jnp.array([[1.0, 3.0], [-2.0, -2.0]])
    params = {"scale": jnp.array([2.0, 4.0]), "bias": jnp.array([0.5, 0.0])}
    y = LayerNorm(epsilon=0.25).apply({"params": params}, x)
    np.testing.assert_allclose(y, [[0.5 - 2 / 1.25**0.5, 4 / 1.25**0.5], [0.5, 0]], rtol=1e-6)
    half = jnp.array([[300.0, 302.0]], jnp.bfloat16)
    y = LayerNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), half)[0]
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, [[-1, 1]])


def test_a_layer_norm_far_from_zero(rng):
    """In two passes: the mean of squares would lose the variance at a mean of 1000."""
    x = rng.normal(1000, 0.1, size=(3, 64))
    layer = LayerNorm()
    y = layer.init_with_output(jax.random.key(0), jnp.asarray(x, jnp.float32))[0]
    x = np.float32(x).astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=5e-3)


def test_dropped_paths():
    """A view's branch is gone or, on average the same, 4/3 of it; evaluation drops none."""
    x = jnp.ones((1000, 2, 3))
    layer = DropPath(0.25)
    y = np.asarray(layer.apply({}, x, train=True, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs((y[:, 0, 0] == 0).mean() - 0.25) < 0.05
    np.testing.assert_array_equal(layer.apply({}, x, train=False), x)
    np.testing.assert_array_equal(DropPath(0.0).apply({}, x, train=True), x)
