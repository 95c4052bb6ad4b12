"""PyTorch state_dicts and our variables: nothing is lost, and nothing is passed over in silence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from fuzzing import cases
from hypothesis import assume, given
from hypothesis import strategies as st

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import convnext, swin, vit
from cfmlc_jax.models.torch_names import BRANCHES
from cfmlc_jax.torch_weights import mlc_pat

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
    variables = mlc_pat.from_torch(name, weights)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert_same(mlc_pat.to_torch(name, variables), weights)


def small_variables(rng, attention, name="resnet_small"):
    """Random variables of a small model with 5 classes."""
    model = catalogue.create_model(name, 5, attention=attention, image_size=64)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3))
    )
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("attention", BRANCHES)
def test_variables_come_back_bit_for_bit(rng, attention):
    variables = small_variables(rng, attention)
    again = mlc_pat.from_torch("resnet_small", mlc_pat.to_torch("resnet_small", variables))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize("image_size", [224, 448])
def test_masks_of_any_image_size_are_known(image_size):
    model = catalogue.create_model("swin_b_224", 3, attention="none", image_size=image_size)
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, 224, 224, 3)))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    state_dict = mlc_pat.to_torch("swin_b_224", zeros, image_size=image_size)
    assert any(key.endswith("attn_mask") for key in state_dict)
    read = mlc_pat.from_torch("swin_b_224", state_dict)
    assert jax.tree.map(np.shape, read["params"]) == jax.tree.map(np.shape, zeros["params"])


def test_kernels_are_transposed_to_where_they_belong(rng):
    weights = random_weights(resnet_shapes((2, 2, 2, 2), 1, classes=7, attention="self"), rng)
    params = mlc_pat.from_torch("resnet18", weights)["params"]
    kernel = params["backbone"]["layer2_0"]["downsample_conv"]["kernel"]
    assert kernel[0, 0, 5, 9] == weights["layer2.0.downsample.0.weight"][9, 5, 0, 0]
    assert params["backbone"]["conv1"]["kernel"][2, 6, 1, 30] == weights["conv1.weight"][30, 1, 2, 6]
    assert params["head"]["patch"]["kernel"][500, 3] == weights["fc.fc2.weight"][3, 500]


@pytest.fixture
def small(rng):
    """A state_dict of resnet_small with 5 classes."""

    def make(attention="cross"):
        return mlc_pat.to_torch("resnet_small", small_variables(rng, attention))

    return make


@pytest.mark.parametrize("attention", BRANCHES)
def test_classes_attention_and_head_follow_from_the_entries(small, attention):
    actual = mlc_pat.architecture("resnet_small", small(attention))
    assert actual == mlc_pat.Architecture(num_classes=5, attention=attention, head="linear", queries=0)


@pytest.mark.parametrize("prefix", ["resnet_small", "q2l_resnet_small"])
def test_a_backbone_without_a_head(rng, prefix):
    """It is all that a new head needs."""
    variables = small_variables(rng, "none", prefix)
    weights = mlc_pat.to_torch(prefix, {kind: {"backbone": x["backbone"]} for kind, x in variables.items()})
    assert not any("fc" in key for key in weights)
    assert mlc_pat.architecture(prefix, weights) == mlc_pat.Architecture(0, "none", "", 0)
    assert mlc_pat.recognise(weights) == prefix
    read = mlc_pat.from_torch(prefix, weights)
    assert set(read["params"]) == {"backbone"}
    jax.tree.map(np.testing.assert_array_equal, read["params"]["backbone"], variables["params"]["backbone"])


def test_a_head_that_is_incomplete_is_an_error(small):
    weights = {key: array for key, array in small("none").items() if key != "fc.bias"}
    with pytest.raises(InputError, match=r"1 missing: fc\.bias; 1 left over: fc\.weight$"):
        mlc_pat.from_torch("resnet_small", weights)
    actual = mlc_pat.from_torch("resnet_small", weights, allow=[r"^fc\."])
    assert set(actual["params"]) == {"backbone"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": np.float32(1)}, r"fc\.bias, from which the head is recognised, is \[\]"),
        ({"fc.bias": np.zeros(0, np.float32)}, r"fc\.bias, from which the head is recognised, is \[0\]"),
    ],
)
def test_a_head_without_classes_is_an_error(small, change, message):
    with pytest.raises(InputError, match=message):
        mlc_pat.from_torch("resnet_small", small("none") | change)


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
def test_unmatched_entries_are_errors(small, change):
    weights = small()
    make, message = CHANGES[change]
    make(weights)
    with pytest.raises(InputError, match=f"not the weights of resnet_small: {message}$") as error:
        mlc_pat.from_torch("resnet_small", weights)
    assert "\n" not in str(error.value)


def test_one_error_lists_all_problems_and_shortens_long_lists(small):
    weights = {key: array for key, array in small().items() if not key.startswith("layer")}
    weights |= {f"other{i}": np.zeros(1) for i in range(20)}
    with pytest.raises(InputError) as error:
        mlc_pat.from_torch("resnet_small", weights)
    assert "20 left over: other0, " in str(error.value)
    assert "other11, …" in str(error.value)
    assert "other12" not in str(error.value)
    assert " missing: layer" in str(error.value)


def test_allowed_entries_may_be_missing_or_left_over(small):
    weights = small()
    kept = weights.pop("layer1.0.bn2.bias")
    weights["epoch"] = np.zeros(1)
    lines = []
    variables = mlc_pat.from_torch(
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
        mlc_pat.from_torch("resnet_small", weights, allow=["layer2"])


def test_allowed_entries_must_have_the_right_shape(small):
    weights = small() | {"bn1.bias": np.zeros(7, np.float32)}
    with pytest.raises(InputError, match=r"1 mis-shaped: bn1\.bias \[7\]"):
        mlc_pat.from_torch("resnet_small", weights, allow=["bn1"])


def test_the_report_has_a_line_for_every_entry(small):
    weights, lines = small(), []
    mlc_pat.from_torch("resnet_small", weights, report=lines.append)
    assert sorted(line.split(" ")[0] for line in lines) == sorted(weights)
    assert "conv1.weight [32, 48, 3, 3] -> params/backbone/conv1/kernel" in lines
    assert "fc.fc3.bias [5] -> params/head/score/bias" in lines
    assert "bn1.running_var [32] -> batch_stats/backbone/bn1/var" in lines
    assert "bn1.num_batches_tracked -> (not used)" in lines


def test_weights_of_in_place_norms(small, rng):
    weights = small()
    values = rng.standard_normal(32, np.float32)
    weights["bn1.weight"] = values
    variables = mlc_pat.from_torch("resnet_small", weights, in_place_norms=True)
    scale = variables["params"]["backbone"]["bn1"]["scale"]
    np.testing.assert_array_equal(scale, np.abs(values) + np.float32(1e-5))
    again = mlc_pat.to_torch("resnet_small", variables, in_place_norms=True)
    np.testing.assert_array_equal(again["bn1.weight"] + np.float32(1e-5), scale)
    scale[3] = 1e-6
    with pytest.raises(InputError, match=r"bn1\.weight: a scale of 1e-06 is below 1e-5"):
        mlc_pat.to_torch("resnet_small", variables, in_place_norms=True)


def test_variables_of_another_model():
    with pytest.raises(InputError, match="a head of other are not those of resnet18"):
        mlc_pat.to_torch("resnet18", {"params": {"backbone": {}, "head": {"other": {}}}})


def test_an_unknown_model():
    with pytest.raises(InputError, match=r"model 'resnet81' is not one of .*did you mean 'resnet18'"):
        mlc_pat.from_torch("resnet81", {})


# --- What is wrapped around a model -------------------------------------------------------------


def prefixed(prefix, arrays):
    return {prefix + key: array for key, array in arrays.items()}


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "module.model.", "ema_model.", "classifier.backbone.", "encoder_q.", "x.y.z."]
)  # fmt: skip
@pytest.mark.parametrize("name", ["resnet_small", "q2l_resnet_small"])
def test_prefixes_of_wrappers_are_removed(rng, prefix, name):
    weights = mlc_pat.to_torch(name, small_variables(rng, "cross", name))
    actual, average = mlc_pat.unwrapped(prefixed(prefix, weights))
    assert_same(actual, weights)
    assert average is None
    assert mlc_pat.recognise(actual) == name


@pytest.mark.parametrize("path", ["ema_model.", "model_ema.module.", "swa_model.", "teacher."])
def test_an_average_beside_the_weights(small, path):
    weights = small()
    average = {key: array + 1 for key, array in weights.items()}
    actual, beside = mlc_pat.unwrapped(prefixed("model.", weights) | prefixed(path, average))
    assert_same(actual, weights)
    assert_same(beside, average)


def test_foreign_entries_keep_their_names_and_are_reported(small):
    actual, _ = mlc_pat.unwrapped(prefixed("model.", small()) | {"criterion.pos_weight": np.ones(5)})
    with pytest.raises(
        InputError, match=r"not the weights of resnet_small: 1 left over: criterion\.pos_weight$"
    ):
        mlc_pat.recognise(actual)
    assert mlc_pat.recognise(actual, allow=["^criterion"]) == "resnet_small"


def test_several_models_in_one_file(small):
    weights = small()
    with pytest.raises(InputError, match=r"several models \(encoder_a\., encoder_b\.\); save one"):
        mlc_pat.unwrapped(prefixed("encoder_a.", weights) | prefixed("encoder_b.", weights))


# --- Other writers' names -----------------------------------------------------------------------


@pytest.fixture
def tiny_swin(monkeypatch):
    """A Swin of a block in each stage, as a backbone by this name."""
    create = functools.partial(swin.Swin, width=8, heads=(1, 2, 2, 2), depths=(2, 1, 1, 1), window=2)
    monkeypatch.setitem(catalogue.BACKBONES, "swin_tiny", catalogue.Backbone(create, 64, swin.TORCH))
    return "swin_tiny"


def by_timm(key):
    """timm 1.0's key, by hand."""
    for i in (2, 1, 0):
        key = key.replace(f"layers.{i}.downsample", f"layers.{i + 1}.downsample")
    return {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}.get(key, key)


def by_torchvision(key):
    """torchvision's key, by hand."""
    table = {"patch_embed.proj": "features.0.0", "patch_embed.norm": "features.0.2", "fc1": "0", "fc2": "3"}
    for i in range(4):
        table |= {
            f"layers.{i}.blocks": f"features.{2 * i + 1}",
            f"layers.{i}.downsample": f"features.{2 * i + 2}",
        }
    for old, new in table.items():
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize("writer", [by_timm, by_torchvision])
@pytest.mark.parametrize("headless", [True, False])
@pytest.mark.parametrize("buffers", [True, False])
def test_swin_weights_of_other_libraries(rng, tiny_swin, writer, headless, buffers):
    variables = small_variables(rng, "none", tiny_swin)
    weights = mlc_pat.to_torch(tiny_swin, variables, image_size=64)
    assert "layers.0.downsample.reduction.weight" in weights
    theirs = {
        writer(key): array
        for key, array in weights.items()
        if (buffers or not key.endswith(("_index", "attn_mask")))
        and not (headless and key.startswith("head."))
    }
    assert mlc_pat.recognise(theirs) == tiny_swin
    read = flatten_dict(mlc_pat.from_torch(tiny_swin, theirs)["params"])
    wanted = flatten_dict(variables["params"])
    assert read.keys() == {path for path in wanted if not (headless and path[0] == "head")}
    for path, array in read.items():
        np.testing.assert_array_equal(array, wanted[path])


def test_in_place_norms_with_names_of_timm_are_refused(rng, tiny_swin):
    weights = mlc_pat.to_torch(tiny_swin, small_variables(rng, "none", tiny_swin), image_size=64)
    with pytest.raises(InputError, match=r"does not go with timm's names \(layers\.3\.downsample"):
        mlc_pat.from_torch(tiny_swin, {by_timm(k): x for k, x in weights.items()}, in_place_norms=True)


# --- Which model it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "blocks", "expansion"),
    [("resnet18", (2, 2, 2, 2), 1), ("resnet34", (3, 4, 6, 3), 1), ("resnet50", (3, 4, 6, 3), 4)],
)
def test_the_model_is_recognised_by_its_entries(name, blocks, expansion):
    shapes = resnet_shapes(blocks, expansion, classes=3, attention="none")
    weights = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    assert mlc_pat.recognise(weights) == name


def test_weights_of_unknown_models_are_refused():
    with pytest.raises(
        InputError, match=r"fit no known model: 1 entries \(encoder\.layer\.0\.weight\), stages of no"
    ):
        mlc_pat.recognise({"encoder.layer.0.weight": np.zeros(3)})
    shapes = resnet_shapes((1, 2, 3, 4), 1, classes=3, attention="none")
    with pytest.raises(InputError, match=r"stages of 1, 2, 3, 4 blocks; \S*weights\.md lists the known"):
        mlc_pat.recognise({key: np.zeros(shape, np.float32) for key, shape in shapes.items()})


@pytest.mark.parametrize(
    ("name", "classes", "attention", "head", "wanted"),
    [
        ("resnet50", 1000, "none", "linear", "imagenet"),
        ("swin_b_384", 21841, "none", "linear", "imagenet"),
        ("resnet101", 0, "none", "", "imagenet"),
        ("resnet101", 80, "none", "linear", ""),  # multi-label: as MLC-PAT's
        ("resnet101", 1000, "cross", "linear", ""),
        ("q2l_resnet101", 1000, "none", "query2label", ""),
        ("tresnet_l", 1000, "none", "linear", ""),
        ("tresnet_l_v2", 0, "none", "", ""),
        ("resnet50", 1000, "none", "ml_decoder", ""),
    ],
)
def test_normalisation_follows_from_the_weights(name, classes, attention, head, wanted):
    assert mlc_pat.normalisation(name, mlc_pat.Architecture(classes, attention, head, 0)) == wanted


# --- Whatever the keys are ----------------------------------------------------------------------

WORDS = ("model", "module", "ema_model", "net", "backbone", "layer1", "fc", "fc1", "body", "x")
NAMES = st.sampled_from(
    ["weight", "conv1.weight", "fc.bias", "fc.fc1.bias", "layer1.0.bn1.weight", ""]
) | st.text(max_size=8)
SHAPES = st.sampled_from([(), (0,), (1,), (5,), (3, 0), (5, 128), (32, 48, 3, 3), (7, 7)])
WHICH = st.integers(0, 47)
CHANGE = st.one_of(
    st.tuples(st.just("rename"), WHICH, NAMES),
    st.tuples(st.just("delete"), WHICH, st.integers(1, 12)),
    st.tuples(st.just("reshape"), WHICH, SHAPES),
    st.tuples(st.just("add"), NAMES, SHAPES),
    st.tuples(st.just("prefix"), st.sampled_from(WORDS), st.integers(1, 48)),
    st.tuples(st.just("cast"), WHICH, st.sampled_from([np.float64, np.int64, np.bool_, np.float16])),
)  # fmt: skip


def changed(weights, kind, first, second):
    keys = list(weights)
    if kind == "add":
        return weights | {first: np.zeros(second, np.float32)}
    if kind == "prefix":
        return {f"{first}.{key}" if i < second else key: weights[key] for i, key in enumerate(keys)}
    chosen = keys[first % len(keys)]
    if kind == "rename":
        return {second if key == chosen else key: array for key, array in weights.items()}
    if kind == "delete":
        return {key: weights[key] for i, key in enumerate(keys) if not first <= i < first + second}
    array = np.zeros(second, np.float32) if kind == "reshape" else weights[chosen].astype(second)
    return weights | {chosen: array}


@functools.cache
def state_dict_of(attention):
    """A state_dict of resnet_small, made once."""
    return mlc_pat.to_torch("resnet_small", small_variables(np.random.default_rng(0), attention))


@cases(300)
@given(attention=st.sampled_from(sorted(BRANCHES)), changes=st.lists(CHANGE, max_size=4), named=st.booleans())
def test_any_entries_are_converted_or_refused(attention, changes, named):
    weights = state_dict_of(attention)
    for change in changes:
        weights = changed(weights, *change) if weights else weights
    try:
        actual, _ = mlc_pat.unwrapped(weights)
        name = "resnet_small" if named else mlc_pat.recognise(actual)
        variables = mlc_pat.from_torch(name, actual)
    except InputError as error:
        message = str(error)
    else:
        message = "converted"
        assert name == "resnet_small"
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert len(message.splitlines()) == 1


@cases(100)
@given(which=WHICH, name=st.text(min_size=1, max_size=12).filter(lambda name: "num_batches" not in name))
def test_a_renamed_entry_is_listed_on_both_sides(which, name):
    weights = state_dict_of("cross")
    assume(name not in weights)
    keys = [
        key for key in weights if not key.endswith("num_batches_tracked") and key not in ("conv1.weight",)
    ]
    chosen = keys[which % len(keys)]
    renamed = {name if key == chosen else key: array for key, array in weights.items()}
    with pytest.raises(InputError) as error:
        mlc_pat.from_torch("resnet_small", renamed)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert " missing: " in message
    assert " left over: " in message
    assert chosen in message


# --- Transformers and ConvNeXt ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outputs", "expected"),
    [
        ("vit_base_patch16_224", 21843, "half"),
        ("vit_base_patch16_siglip_224", 0, "half"),
        ("vit_base_patch16_clip_224", 512, "clip"),  # a projection of images and texts into one space
        ("vit_base_patch16_clip_224", 11821, "clip"),
        ("vit_base_patch16_clip_224", 80, ""),
        ("vit_large_patch14_dinov2", 0, "imagenet"),
        ("convnext_base", 1000, "imagenet"),
        ("convnext_base", 640, "clip"),
        ("q2l_convnext_base", 0, ""),
    ],
)
def test_normalisation_of_published_weights(name, outputs, expected):
    head = "linear" if outputs else ""
    assert mlc_pat.normalisation(name, mlc_pat.Architecture(outputs, "none", head, 0)) == expected


@pytest.mark.parametrize(
    "create",
    [
        functools.partial(vit.ViT, width=8, depth=2, heads=2, patch=8, grid=2, registers=1),
        functools.partial(convnext.ConvNeXt, widths=(4, 8, 8, 8), depths=(1, 1, 1, 1)),
    ],
)
def test_query2label_on_new_backbones_comes_back(monkeypatch, create):
    """With positions of its map, which are written, and not read."""
    stride, torch_names = (
        (8, vit.MODELS["vit_small_patch16_224"].torch) if create.func is vit.ViT else (32, convnext.TORCH)
    )
    name = f"tiny_{create.func.__name__}"
    monkeypatch.setitem(
        catalogue.BACKBONES, name, catalogue.Backbone(create, stride, torch_names, batch_norms=False)
    )
    name = catalogue.QUERY2LABEL + name
    model = catalogue.create_model(name, 3, image_size=64)
    shapes = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 1, 64, 64, 3), np.float32)
    )
    leaves, tree = jax.tree.flatten(shapes)
    variables = tree.unflatten(np.full(leaf.shape, i, np.float32) for i, leaf in enumerate(leaves))
    state_dict = mlc_pat.to_torch(name, variables, image_size=64)
    assert state_dict["backbone.1.pe"].shape == (1, 8, 64 // stride, 64 // stride)
    assert mlc_pat.recognise(state_dict) == name
    jax.tree.map(
        np.testing.assert_array_equal, mlc_pat.from_torch(name, state_dict)["params"], variables["params"]
    )
