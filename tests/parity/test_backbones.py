"""Backbones of published size against the reference: weights and inputs by rule, see `reference`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.heads.linear import LinearHead
from cfmlc_jax.torch_weights import mlc_pat

CLASSES = 20
MODELS = ("resnet101", "tresnet_l", "tresnet_l_v2")
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
# Ten times what float32 and float64 of the reference differ by; its logits reach 17 and 2.5 with
# fill A, 122 and 12 to 20 with B.
TOLERANCE = {
    ("resnet101", "A"): 1e-4,
    ("resnet101", "B"): 1e-3,
    ("tresnet_l", "A"): 2e-5,
    ("tresnet_l", "B"): 6e-5,
    ("tresnet_l_v2", "A"): 2e-5,
    ("tresnet_l_v2", "B"): 2e-4,
}


def create(name, size=128, dtype=jnp.float32):
    return catalogue.create_model(name, CLASSES, attention="cross", image_size=size, dtype=dtype)


@functools.cache
def torch_shapes(name):
    """Shapes of the state_dict's entries by key."""
    init = functools.partial(create(name).init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    state_dict = mlc_pat.to_torch(name, blank, in_place_norms=False)
    return {key: array.shape for key, array in state_dict.items()}


def logits(outputs):
    """[3, images, k] of one view of each image."""
    return np.stack([x[:, 0] for x in (outputs.whole, outputs.attention, outputs.score)])


def statistics(stage):
    """Mean, deviation and absolute maximum of [b, 1, h, w, c], and 8 pixels of the first channel: [11]."""
    stage = np.asarray(stage, np.float64)
    return np.array([stage.mean(), stage.std(), np.abs(stage).max(), *stage[0, 0, ..., 0].ravel()[:8]])


@pytest.mark.parametrize("name", MODELS)
def test_evaluation(golden, name):
    arrays = golden("backbones.npz")
    shapes = torch_shapes(name)
    model = create(name)
    apply = jax.jit(functools.partial(model.apply, train=False))
    views = reference.waves(2, 128)[:, None]
    features = {}
    for variant in "AB":
        weights = reference.fill_all(shapes, variant=variant)
        # The reference's numbers were measured with plain norms.
        outputs = apply(mlc_pat.from_torch(name, weights, in_place_norms=False), views)
        expected = arrays[f"{name}/{variant}/logits"]
        np.testing.assert_allclose(logits(outputs), expected, rtol=0, atol=TOLERANCE[name, variant])
        features[variant] = outputs.features
        pooled = np.asarray(outputs.features["pooled"])[:, 0, ::8]
        np.testing.assert_allclose(pooled, arrays[f"{name}/{variant}/pooled"], rtol=1e-4, atol=1e-5)
        for stage, expected in zip(STAGES, arrays[f"{name}/{variant}/stages"]):
            actual = statistics(outputs.features[stage])
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=f"{variant} {stage}")
    assert_heads(arrays, name, features["A"]["pooled"])


def assert_heads(arrays, name, pooled):
    """Other heads on the same features, the logits of fill A."""
    backbone, _ = catalogue.parts(name)
    names = catalogue.HEADS["linear"].torch
    for attention, classes in (("none", 20), ("self", 20), ("none", 80), ("self", 80), ("cross", 80)):
        params = {
            branch: {
                "kernel": reference.fill(f"{path}.weight", (classes, pooled.shape[-1])).T,
                "bias": reference.fill(f"{path}.bias", (classes,)),
            }
            for branch, path in names.branches(attention, names.prefix(backbone.torch)).items()
        }
        head = LinearHead(classes, attention)
        branches = head.apply({"params": params}, {"pooled": pooled}, train=False)
        expected = arrays[f"{name}/{attention}/{classes}"]
        actual = np.stack([x[:, 0] for x in branches[: len(expected)]])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[name, "A"])


@pytest.mark.parametrize("name", [pytest.param("resnet101", marks=pytest.mark.slow), "tresnet_l_v2"])
def test_training_forward(golden, name):
    """In float64: over the last stages' 2×2 maps of 4 images, norms turn float32's rounding into 1e-3."""
    arrays = golden("backbones.npz")
    float32 = mlc_pat.from_torch(name, reference.fill_all(torch_shapes(name)), in_place_norms=False)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), float32)
        views = reference.waves(4, 64)[:, None].astype(np.float64)
        model = create(name, 64, jnp.float64)
        apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
        outputs, updated = apply(variables, views)
        np.testing.assert_allclose(logits(outputs), arrays[f"{name}/train/logits"], rtol=0, atol=1e-9)
    state_dict = mlc_pat.to_torch(name, variables | updated, in_place_norms=False)
    layers = sorted(key.removesuffix(".running_var") for key in state_dict if key.endswith(".running_var"))
    means = {layer: state_dict[f"{layer}.running_mean"] for layer in layers}
    variances = {layer: state_dict[f"{layer}.running_var"] for layer in layers}
    # The reference's statistics are those of its float32 pass.
    first, last = (
        ("bn1", "layer4.2.bn3") if name == "resnet101" else ("body.conv1.1", "body.layer4.2.conv3.1")
    )
    mean, var = arrays[f"{name}/train/first"]
    np.testing.assert_allclose(means[first], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(variances[first], var, rtol=1e-6)
    mean, var = arrays[f"{name}/train/last"]
    np.testing.assert_allclose(means[last][::8], mean, rtol=0, atol=5e-5)
    np.testing.assert_allclose(variances[last][::8], var, rtol=1e-3)
    sums = [(means[layer].sum(), np.abs(means[layer]).sum(), variances[layer].sum()) for layer in layers]
    expected = arrays[f"{name}/train/sums"]
    scale = expected[:, [1, 1, 2]]  # the sum of means may cancel
    np.testing.assert_allclose(sums / scale, expected / scale, rtol=0, atol=2e-5)


def numbered(shapes):
    """A state_dict of positive numbers that differ inside an entry and in their place between entries."""
    return {
        key: (1 + i + np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }


def weights_only(state_dict):
    return {key: array for key, array in state_dict.items() if not key.endswith("num_batches_tracked")}


def assert_same_trees(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back(name):
    state_dict = weights_only(numbered(torch_shapes(name)))
    variables = mlc_pat.from_torch(name, state_dict, in_place_norms=False)
    back = weights_only(mlc_pat.to_torch(name, variables, in_place_norms=False))
    assert_same_trees(back, state_dict)


def test_in_place_weights_act_by_their_size():
    name = "tresnet_l_v2"
    shapes = torch_shapes(name)
    norms = [key for key, shape in shapes.items() if key.endswith("weight") and len(shape) == 1]
    weights = numbered(shapes) | {key: reference.fill(key, shapes[key]) for key in norms}
    rng = np.random.default_rng(0)
    signed = weights | {
        key: weights[key] * rng.choice(np.float32([-1, 1]), weights[key].shape) for key in norms
    }
    variables = mlc_pat.from_torch(name, weights)
    assert_same_trees(mlc_pat.from_torch(name, signed), variables)
    scale = variables["params"]["backbone"]["layer2_0"]["conv2_halving"]["bn"]["scale"]
    np.testing.assert_array_equal(scale, weights["body.layer2.0.conv2.0.1.weight"] + np.float32(1e-5))
    assert_same_trees(mlc_pat.from_torch(name, mlc_pat.to_torch(name, variables)), variables)


# Entries of timm's own models (1.0.31) beside MIIL's.
TIMM = {
    "tresnet_l": {
        "body.conv1.0.weight": "body.conv1.conv.weight",
        "body.conv1.1.running_mean": "body.conv1.bn.running_mean",
        "body.layer1.0.conv1.0.weight": "body.layer1.0.conv1.conv.weight",
        "body.layer1.0.se.fc1.bias": "body.layer1.0.se.fc1.bias",
        "body.layer2.0.conv1.0.0.weight": "body.layer2.0.conv1.conv.weight",
        "body.layer2.0.conv1.0.1.weight": "body.layer2.0.conv1.bn.weight",
        "body.layer2.0.downsample.1.1.bias": "body.layer2.0.downsample.1.bn.bias",
        "body.layer3.17.conv3.1.running_var": "body.layer3.17.conv3.bn.running_var",
    },
    "tresnet_l_v2": {
        "body.layer1.0.downsample.0.0.weight": "body.layer1.0.downsample.0.conv.weight",
        "body.layer4.0.conv2.0.1.bias": "body.layer4.0.conv2.bn.bias",
        "body.layer4.0.conv2.0.0.weight": "body.layer4.0.conv2.conv.weight",
        "body.layer4.0.downsample.1.0.weight": "body.layer4.0.downsample.1.conv.weight",
    },
}


def by_timm(key):
    """timm's key: its layers name their two parts, and a blur does not nest them."""
    *layer, part, leaf = key.split(".")
    if not part.isdigit():
        return key
    if layer[-2].startswith("conv"):
        layer.pop()
    return ".".join((*layer, "conv" if part == "0" else "bn", leaf))


@pytest.mark.parametrize("name", TIMM)
def test_weights_with_the_names_of_timm(name):
    """The same variables, so the same logits; norms as they are."""
    weights = numbered(torch_shapes(name))
    assert {key: by_timm(key) for key in TIMM[name]} == TIMM[name]
    named_by_timm = {by_timm(key): array for key, array in weights.items()}
    assert_same_trees(
        mlc_pat.from_torch(name, named_by_timm), mlc_pat.from_torch(name, weights, in_place_norms=False)
    )


def test_timm_has_no_in_place_norms():
    weights = numbered(torch_shapes("tresnet_l_v2"))
    named_by_timm = {by_timm(key): array for key, array in weights.items()}
    with pytest.raises(InputError, match=r"in_place_norms=True does not go with timm's names"):
        mlc_pat.from_torch("tresnet_l_v2", named_by_timm, in_place_norms=True)
    del named_by_timm["body.layer2.0.conv2.bn.weight"]
    with pytest.raises(InputError, match=r"1 missing: body\.layer2\.0\.conv2\.bn\.weight"):
        mlc_pat.from_torch("tresnet_l_v2", named_by_timm)
