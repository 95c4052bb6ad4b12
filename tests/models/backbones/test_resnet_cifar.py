"""The two-branch network for small images, and grouped convolutions; parity is in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.backbones.resnet_cifar import TwoBranchResNet, padded_shortcut
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.norms import BatchNorm


def tiny(dtype=jnp.float32):
    norm = functools.partial(BatchNorm, dtype=dtype)
    backbone = TwoBranchResNet(stage_sizes=(1, 1, 1), width=4, dtype=dtype, norm=norm)
    return Classifier(backbone=backbone, head=linear.LinearHead(3, "none"))


def start(model, x):
    return jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)


def run(model, variables, x):
    return jax.jit(functools.partial(model.apply, train=False))(variables, x)


def test_the_shortcut_takes_every_second_pixel_between_zeros():
    x = jnp.arange(1 * 3 * 4 * 2, dtype=jnp.float32).reshape(1, 3, 4, 2)
    y = padded_shortcut(x, 4, 2)
    assert y.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(y[0, 1, 1], [0, *x[0, 2, 2], 0])
    np.testing.assert_array_equal(padded_shortcut(x, 2, 1), x)


def test_maps_halve_and_branches_stand_side_by_side(rng):
    views = jnp.asarray(rng.random((2, 1, 20, 20, 3)), jnp.float32)
    features = run(tiny(), start(tiny(), views), views).features
    assert {name: x.shape[2:] for name, x in features.items()} == {
        "stem": (20, 20, 4),
        "layer1": (20, 20, 4),
        "layer2": (10, 10, 8),
        "layer3": (5, 5, 16),
        "cb_block": (5, 5, 16),
        "rb_block": (5, 5, 16),
        "map": (5, 5, 32),
        "pooled": (32,),
    }
    np.testing.assert_array_equal(features["map"][..., :16], features["cb_block"])
    np.testing.assert_array_equal(features["map"][..., 16:], features["rb_block"])
    assert not np.array_equal(features["cb_block"], features["rb_block"])
    np.testing.assert_allclose(features["pooled"], features["map"].mean(axis=(2, 3)), rtol=1e-5)


def test_half_precision_is_close_to_full_precision(rng):
    views = jnp.asarray(rng.random((2, 1, 16, 16, 3)), jnp.float32)
    variables = start(tiny(), views)
    full = run(tiny(), variables, views).whole
    half = run(tiny(jnp.bfloat16), variables, views)
    assert half.features["map"].dtype == jnp.bfloat16
    assert half.features["pooled"].dtype == half.whole.dtype == jnp.float32
    np.testing.assert_allclose(half.whole, full, atol=0.05 * np.abs(full).max())


def test_kernels_are_initialised_by_fan_in():
    """Kaiming: deviation √(2 / (9 c)) of a 3×3 on c channels; 147,456 numbers know theirs to 1 %."""
    views = jnp.zeros((1, 1, 8, 8, 3))
    model = Classifier(
        backbone=TwoBranchResNet(stage_sizes=(1, 1), width=128), head=linear.LinearHead(3, "none")
    )
    kernel = start(model, views)["params"]["backbone"]["layer2_0"]["conv1"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 128)), rtol=0.01)


def test_a_groups_features_see_its_own_channels_only(rng):
    """Each of 3 groups is a convolution of its own."""
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 12)), jnp.float32)
    layer = Conv(6, 3, 2, groups=3)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 4, 6)
    for group in range(3):
        own, inputs = slice(2 * group, 2 * group + 2), slice(4 * group, 4 * group + 4)
        alone = Conv(2, 3, 2).apply({"params": {"kernel": kernel[..., own]}}, x[..., inputs])
        np.testing.assert_allclose(y[..., own], alone, atol=1e-5)


def test_a_grouped_pointwise_convolution(rng):
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 4)), jnp.float32)
    layer = Conv(4, 1, groups=2)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    expected = x[..., :2] @ variables["params"]["kernel"][0, 0, :, :2]
    np.testing.assert_allclose(y[..., :2], expected, atol=1e-5)


def test_group_width_grows_with_the_planes():
    block = resnet.Bottleneck(
        planes=128, stride=1, dtype=jnp.float32, norm=BatchNorm, groups=32, group_width=4
    )
    init = functools.partial(block.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4, 4, 256)))["params"]
    assert params["conv1"]["kernel"].shape == (1, 1, 256, 256)
    assert params["conv2"]["kernel"].shape == (3, 3, 8, 256)
    assert params["conv3"]["kernel"].shape == (1, 1, 256, 512)
