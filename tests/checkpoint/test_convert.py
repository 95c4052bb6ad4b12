"""PyTorch state_dicts and our variables: nothing is lost, and nothing is passed over in silence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.checkpoint import convert
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import build
from cfmlc_jax.models.naming import BRANCHES

HEAD_KEYS = {"none": ["fc"], "self": ["fc.fc1", "fc.fc2"], "cross": ["fc.fc1", "fc.fc2", "fc.fc3"]}


def resnet_shapes(blocks, expansion, *, classes, attention):
    """Shapes by key as torchvision's ResNets have them, by hand."""
    shapes = {"conv1.weight": (64, 3, 7, 7)} | norm("bn1", 64)
    width = 64
    for stage, count in enumerate(blocks):
        planes = 64 * 2**stage
        for i in range(count):
            block = f"layer{stage + 1}.{i}"
            kernels = [(planes, width, 3), (planes, planes, 3)]
            if expansion == 4:
                kernels = [(planes, width, 1), (planes, planes, 3), (4 * planes, planes, 1)]
            for n, (out, into, side) in enumerate(kernels, 1):
                shapes[f"{block}.conv{n}.weight"] = (out, into, side, side)
                shapes |= norm(f"{block}.bn{n}", out)
            if i == 0 and (stage > 0 or expansion == 4):
                shapes[f"{block}.downsample.0.weight"] = (expansion * planes, width, 1, 1)
                shapes |= norm(f"{block}.downsample.1", expansion * planes)
            width = expansion * planes
    for key in HEAD_KEYS[attention]:
        shapes |= {f"{key}.weight": (classes, width), f"{key}.bias": (classes,)}
    return shapes


def norm(key, channels):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{key}.{name}": (channels,) for name in vectors} | {f"{key}.num_batches_tracked": ()}


def random_weights(shapes, rng):
    return {
        key: np.int64(0)[...] if key.endswith("tracked") else rng.standard_normal(shape, np.float32)
        for key, shape in shapes.items()
    }


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype, key
        np.testing.assert_array_equal(ours[key], array, err_msg=key)


@pytest.mark.parametrize(
    ("name", "blocks", "expansion", "attention"),
    [("resnet18", (2, 2, 2, 2), 1, "cross"), ("resnet50", (3, 4, 6, 3), 4, "none")],
)
def test_a_state_dict_comes_back_bit_for_bit(rng, name, blocks, expansion, attention):
    shapes = resnet_shapes(blocks, expansion, classes=7, attention=attention)
    weights = random_weights(shapes, rng)
    variables = convert.from_torch(name, weights)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert_same(convert.to_torch(name, variables), weights)


def small_variables(rng, attention):
    """Random variables of resnet_small with 5 classes."""
    model = build.create("resnet_small", 5, attention=attention, image_size=64)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3))
    )
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("attention", BRANCHES)
def test_variables_come_back_bit_for_bit(rng, attention):
    variables = small_variables(rng, attention)
    again = convert.from_torch("resnet_small", convert.to_torch("resnet_small", variables))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize("image_size", [224, 448])
def test_masks_of_any_image_size_are_known(image_size):
    model = build.create("swin_b_224", 3, attention="none", image_size=image_size)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, 224, 224, 3)))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    state_dict = convert.to_torch("swin_b_224", zeros, image_size=image_size)
    assert any(key.endswith("attn_mask") for key in state_dict)
    read = convert.from_torch("swin_b_224", state_dict)
    assert jax.tree.map(np.shape, read["params"]) == jax.tree.map(np.shape, zeros["params"])


def test_kernels_are_transposed_to_where_they_belong(rng):
    weights = random_weights(resnet_shapes((2, 2, 2, 2), 1, classes=7, attention="self"), rng)
    params = convert.from_torch("resnet18", weights)["params"]
    kernel = params["backbone"]["layer2_0"]["downsample_conv"]["kernel"]
    assert kernel[0, 0, 5, 9] == weights["layer2.0.downsample.0.weight"][9, 5, 0, 0]
    assert params["backbone"]["conv1"]["kernel"][2, 6, 1, 30] == weights["conv1.weight"][30, 1, 2, 6]
    assert params["head"]["patch"]["kernel"][500, 3] == weights["fc.fc2.weight"][3, 500]


@pytest.fixture
def small(rng):
    """A state_dict of resnet_small with 5 classes."""

    def make(attention="cross"):
        return convert.to_torch("resnet_small", small_variables(rng, attention))

    return make


@pytest.mark.parametrize("attention", BRANCHES)
def test_classes_attention_and_head_follow_from_the_entries(small, attention):
    found = convert.architecture("resnet_small", small(attention))
    assert found == convert.Architecture(num_classes=5, attention=attention, head="linear", groups=0)


def test_no_head_is_an_error(small):
    weights = {key: array for key, array in small().items() if not key.startswith("fc")}
    with pytest.raises(InputError, match=r"no head of resnet_small .*looked for fc\.fc1\.bias") as error:
        convert.from_torch("resnet_small", weights)
    assert "\n" not in str(error.value)


CHANGES = {
    "missing": (lambda w: w.pop("layer1.0.bn2.bias"), r"1 missing: layer1\.0\.bn2\.bias"),
    "left over": (lambda w: w.update(extra=w["bn1.bias"]), "1 left over: extra"),
    "mis-shaped": (
        lambda w: w.update({"conv1.weight": w["conv1.weight"][:, :3]}),
        r"1 mis-shaped: conv1\.weight \[32, 3, 3, 3\] instead of \[32, 48, 3, 3\]",
    ),
    "another head's": (lambda w: w.update({"fc.weight": w["fc.fc1.weight"]}), r"1 left over: fc\.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_entry_has_its_place_or_is_an_error(small, change):
    weights = small()
    make, message = CHANGES[change]
    make(weights)
    with pytest.raises(InputError, match=f"not the weights of resnet_small: {message}$") as error:
        convert.from_torch("resnet_small", weights)
    assert "\n" not in str(error.value)


def test_problems_of_all_kinds_are_told_at_once_and_long_lists_cut(small):
    weights = {key: array for key, array in small().items() if not key.startswith("layer")}
    weights |= {f"other{i}": np.zeros(1) for i in range(20)}
    with pytest.raises(InputError) as error:
        convert.from_torch("resnet_small", weights)
    assert "20 left over: other0, " in str(error.value)
    assert "other11, …" in str(error.value)
    assert "other12" not in str(error.value)
    assert " missing: layer" in str(error.value)


def test_what_is_allowed_may_be_missing_or_left_over(small):
    weights = small()
    kept = weights.pop("layer1.0.bn2.bias")
    weights["epoch"] = np.zeros(1)
    lines = []
    variables = convert.from_torch(
        "resnet_small", weights, allow=[r"bn2\.bias$", "^epoch$"], report=lines.append
    )
    block = variables["params"]["backbone"]["layer1_0"]
    np.testing.assert_array_equal(block["bn2"]["bias"], np.zeros_like(kept))  # as a fresh norm's
    np.testing.assert_array_equal(block["bn1"]["bias"], weights["layer1.0.bn1.bias"])
    shape = list(kept.shape)
    assert (
        f"layer1.0.bn2.bias {shape} -> params/backbone/layer1_0/bn2/bias  (missing: initial values)" in lines
    )
    assert "epoch -> (not used)" in lines
    with pytest.raises(InputError, match=r"1 missing: .*1 left over: epoch"):
        convert.from_torch("resnet_small", weights, allow=["layer2"])


def test_what_is_allowed_must_still_have_its_shape(small):
    weights = small() | {"bn1.bias": np.zeros(7, np.float32)}
    with pytest.raises(InputError, match=r"1 mis-shaped: bn1\.bias \[7\]"):
        convert.from_torch("resnet_small", weights, allow=["bn1"])


def test_the_report_has_a_line_for_every_entry(small):
    weights, lines = small(), []
    convert.from_torch("resnet_small", weights, report=lines.append)
    assert sorted(line.split(" ")[0] for line in lines) == sorted(weights)
    assert "conv1.weight [32, 48, 3, 3] -> params/backbone/conv1/kernel" in lines
    assert "fc.fc3.bias [5] -> params/head/score/bias" in lines
    assert "bn1.running_var [32] -> batch_stats/backbone/bn1/var" in lines
    assert "bn1.num_batches_tracked -> (not used)" in lines


def test_weights_of_in_place_norms(small, rng):
    weights = small()
    values = rng.standard_normal(32, np.float32)
    weights["bn1.weight"] = values
    variables = convert.from_torch("resnet_small", weights, in_place_norms=True)
    scale = variables["params"]["backbone"]["bn1"]["scale"]
    np.testing.assert_array_equal(scale, np.abs(values) + np.float32(1e-5))
    again = convert.to_torch("resnet_small", variables, in_place_norms=True)
    np.testing.assert_array_equal(again["bn1.weight"] + np.float32(1e-5), scale)
    scale[3] = 1e-6
    with pytest.raises(InputError, match=r"bn1\.weight: a scale of 1e-06 is below 1e-5"):
        convert.to_torch("resnet_small", variables, in_place_norms=True)


def test_variables_of_another_model():
    with pytest.raises(InputError, match="a head of other are not those of resnet18"):
        convert.to_torch("resnet18", {"params": {"backbone": {}, "head": {"other": {}}}})


def test_an_unknown_model():
    with pytest.raises(InputError, match=r"model 'resnet81' is not one of .*did you mean 'resnet18'"):
        convert.from_torch("resnet81", {})
