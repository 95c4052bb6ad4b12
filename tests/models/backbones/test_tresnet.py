"""The parts of TResNet against loops and hand-made numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cfmlc_jax.models.backbones import tresnet
from cfmlc_jax.models.layers.norms import BatchNorm


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7), (2, 3)])
def test_blur_is_a_strided_correlation(rng, height, width):
    x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    filter_ = np.outer([1, 2, 1], [1, 2, 1]) / 16
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    expected = np.einsum("bhwcij,ij->bhwc", windows, filter_)
    np.testing.assert_allclose(tresnet.blur(x), expected, atol=1e-6)
    check_grads(tresnet.blur, (x,), order=1, modes=("rev",), atol=1e-2, rtol=1e-2)


def test_blur_of_half_precision_is_rounded_once(rng):
    x = jnp.asarray(rng.normal(size=(1, 8, 8, 4)), jnp.bfloat16)
    blurred = tresnet.blur(x)
    assert blurred.dtype == jnp.bfloat16
    np.testing.assert_array_equal(blurred, tresnet.blur(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_average_pool2_counts_only_pixels_that_are_there():
    x = jnp.arange(1.0, 16).reshape(1, 3, 5, 1)
    expected = [[(1 + 2 + 6 + 7) / 4, (3 + 4 + 8 + 9) / 4, (5 + 10) / 2], [(11 + 12) / 2, (13 + 14) / 2, 15]]
    np.testing.assert_allclose(tresnet.average_pool2(x)[0, ..., 0], expected, rtol=1e-6)
    even = tresnet.average_pool2(x[:, :2, :4])
    np.testing.assert_allclose(even[0, ..., 0], [expected[0][:2]], rtol=1e-6)
    check_grads(tresnet.average_pool2, (x,), order=1, modes=("rev",), atol=1e-2, rtol=1e-2)


def test_gates_are_made_of_all_channels_means():
    x = jnp.stack([jnp.full((1, 2, 2), 1.0), jnp.array([[[2.0, 4], [0, 2]]])], axis=-1)  # means 1 and 2
    params = {
        "fc1": {"kernel": jnp.array([[1.0, 1.0], [1.0, -1.0]])[None, None], "bias": jnp.array([0.5, 0.0])},
        "fc2": {"kernel": jnp.array([[1.0, 0.0], [1.0, 9.0]])[None, None], "bias": jnp.array([-3.5, 1.0])},
    }
    # Hidden: 1 + 2 + 0.5 = 3.5 and relu(1 − 2) = 0; then 3.5 − 3.5 and 0 + 1.
    gates = np.array([0.5, 1 / (1 + np.exp(-1))], np.float32)
    gated = tresnet.SqueezeExcite(2).apply({"params": params}, x)
    np.testing.assert_allclose(gated, x * gates.reshape(1, 1, 1, 2), rtol=1e-6)


def tiny(**fields):
    blocks = (tresnet.BasicBlock, tresnet.Bottleneck, tresnet.Bottleneck)
    return tresnet.TResNet(stage_sizes=(1, 2, 1), blocks=blocks, width=8, **fields)


@pytest.fixture
def images(rng):
    return jnp.asarray(rng.random((2, 32, 32, 3)), jnp.float32)


def initial(model, images):
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)


def features_of(model, variables, images):
    return jax.jit(functools.partial(model.apply, train=False))(variables, images)


def test_shapes_of_features_and_layers():
    model, images = tiny(), jnp.zeros((2, 32, 32, 3))
    run = functools.partial(model.init_with_output, train=False)
    features, variables = jax.eval_shape(run, jax.random.key(0), images)
    assert {name: x.shape for name, x in features.items()} == {
        "stem": (2, 8, 8, 8),
        "layer1": (2, 8, 8, 8),
        "layer2": (2, 4, 4, 64),
        "layer3": (2, 2, 2, 128),
        "map": (2, 2, 2, 128),
        "pooled": (2, 128),
    }
    params = variables["params"]
    assert {name: set(layers) for name, layers in params.items() if name.startswith("layer")} == {
        "layer1_0": {"conv1", "conv2", "se"},
        "layer2_0": {"conv1", "conv2_halving", "conv3", "se", "downsample_halving"},
        "layer2_1": {"conv1", "conv2", "conv3", "se"},
        "layer3_0": {"conv1", "conv2_halving", "conv3", "downsample_halving"},
    }
    assert params["layer1_0"]["se"]["fc1"]["kernel"].shape == (1, 1, 8, 64)


def test_residual_branches_start_near_zero(images):
    """A block that keeps the shape is at first no more than its ReLU."""
    variables = initial(tiny(), images)
    for block, layer in (("layer1_0", "conv2"), ("layer2_1", "conv3")):
        scale = variables["params"][block][layer]["bn"]["scale"]
        np.testing.assert_array_equal(scale, np.full(scale.shape, 1e-5, np.float32))
    features = features_of(tiny(), variables, images)
    np.testing.assert_allclose(features["layer1"], jax.nn.relu(features["stem"]), atol=1e-4)
    assert float(features["stem"].min()) < 0  # leaky


def test_half_precision_is_close_to_full_precision(images):
    variables = initial(tiny(), images)
    full = features_of(tiny(), variables, images)
    norm = functools.partial(BatchNorm, dtype=jnp.bfloat16)
    half = features_of(tiny(dtype=jnp.bfloat16, norm=norm), variables, images)
    assert half["layer3"].dtype == jnp.bfloat16
    assert half["pooled"].dtype == jnp.float32
    np.testing.assert_allclose(half["pooled"], full["pooled"], atol=0.03 * np.abs(full["pooled"]).max())


def test_gradients_reach_every_parameter(images):
    variables = initial(tiny(), images)

    def loss(params):
        return jnp.sin(tiny().apply(variables | {"params": params}, images, train=False)["pooled"]).sum()

    gradient = jax.jit(jax.grad(loss))(jax.tree.map(lambda leaf: leaf + 0.01, variables["params"]))
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
