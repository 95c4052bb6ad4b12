"""The reference's checkpoints: nothing is lost, and nothing is passed over in silence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.heads.pooled import CosineClassifier, LinearClassifier, ScaledClassifier
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.torch_weights import long_tailed

NAME, D, K = "resnet32_cifar", 128, 10
CLASSIFIERS = {
    "causal": ({"weight": (K, D)}, CosineClassifier(K)),
    "plain": ({"fc.weight": (K, D)}, LinearClassifier(K)),
    "scaled": ({"scales": (K,), "fc.weight": (K, D), "fc.bias": (K,)}, ScaledClassifier(K)),
}


def backbone_variables(rng, name=NAME):
    backbone = catalogue.BACKBONES[name].create(dtype=jnp.float32, norm=BatchNorm)
    init = functools.partial(backbone.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def noise(rng, shapes):
    return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}


@pytest.fixture
def checkpoint(rng):
    """What the reference saves of its best epoch, with a classifier of some kind."""

    def make(kind="causal"):
        parts = {
            "feat_model": long_tailed.backbone_to_torch(NAME, backbone_variables(rng)),
            "classifier": noise(rng, CLASSIFIERS[kind][0]),
        }
        weights = {
            part: {f"module.{key}": array for key, array in entries.items()}
            for part, entries in parts.items()
        }
        embed = rng.standard_normal(D, np.float32)
        return {"epoch": 200, "best_epoch": 190, "state_dict_best": weights, "best_acc": 0.7, "embed": embed}

    return make


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        assert actual[key].dtype == array.dtype, key
        np.testing.assert_array_equal(actual[key], array, err_msg=key)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_checkpoint_comes_back_bit_for_bit(checkpoint, kind):
    saved = checkpoint(kind)
    variables = long_tailed.from_torch(NAME, saved)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    back = long_tailed.to_torch(NAME, variables)
    for weights in (back["state_dict_best"], back["state_dict"]):
        assert weights.keys() == saved["state_dict_best"].keys()
        for part, entries in saved["state_dict_best"].items():
            assert_same(weights[part], entries)
    expected = saved["embed"] if kind == "causal" else np.zeros(D, np.float32)
    assert back["embed"].dtype == np.float32
    np.testing.assert_array_equal(back["embed"], expected)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_variables_are_those_of_the_modules(checkpoint, kind):
    variables = long_tailed.from_torch(NAME, checkpoint(kind))
    expected = jax.eval_shape(CLASSIFIERS[kind][1].init, jax.random.key(0), jnp.zeros((2, D)))
    head = {
        name: collection["head"]["whole"] for name, collection in variables.items() if "head" in collection
    }
    assert jax.tree.map(np.shape, head) == jax.tree.map(np.shape, dict(expected))


def test_entries_become_the_right_variables(checkpoint):
    saved = checkpoint()
    backbone, classifier = (saved["state_dict_best"][part] for part in ("feat_model", "classifier"))
    variables = long_tailed.from_torch(NAME, saved)
    params, statistics = variables["params"], variables["batch_stats"]
    assert params["head"]["whole"]["kernel"][100, 3] == classifier["module.weight"][3, 100]
    np.testing.assert_array_equal(statistics["head"]["whole"]["mean_feature"], saved["embed"])
    kernel = params["backbone"]["layer3_0"]["conv1"]["kernel"]
    assert kernel[2, 0, 5, 9] == backbone["module.layer3.0.conv1.weight"][9, 5, 2, 0]
    np.testing.assert_array_equal(
        statistics["backbone"]["rb_block"]["bn2"]["var"], backbone["module.rb_block.bn2.running_var"]
    )


def test_the_latest_weights_are_read_where_there_are_no_best(checkpoint):
    saved = checkpoint()
    latest = {"epoch": 200, "state_dict": saved["state_dict_best"], "embed": saved["embed"]}
    actual, expected = (long_tailed.from_torch(NAME, one) for one in (latest, saved))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_backbone_by_itself_with_or_without_the_prefix(rng):
    variables = backbone_variables(rng, "resnet10")
    state_dict = long_tailed.backbone_to_torch("resnet10", variables)
    parallel = {f"module.{key}": array for key, array in state_dict.items()}
    for entries in (state_dict, parallel):
        again = long_tailed.backbone_from_torch("resnet10", entries)
        jax.tree.map(np.testing.assert_array_equal, again, variables)


def change(saved, part, key, array):
    saved["state_dict_best"][part][key] = array


CHANGES = {
    "missing": (
        lambda s: s["state_dict_best"]["feat_model"].pop("module.bn1.bias"),
        r"not the weights of resnet32_cifar: 1 missing: bn1\.bias$",
    ),
    "left over": (
        lambda s: change(s, "feat_model", "module.fc.bias", np.zeros(3)),
        r"not the weights of resnet32_cifar: 1 left over: fc\.bias$",
    ),
    "mis-shaped": (
        lambda s: change(s, "feat_model", "module.conv1.weight", np.zeros((16, 3, 7, 7))),
        r"1 mis-shaped: conv1\.weight \[16, 3, 7, 7\] instead of \[16, 3, 3, 3\]$",
    ),
    "no part": (
        lambda s: s["state_dict_best"].pop("classifier"),
        r"no 'classifier' in the weights \(keys: feat_model\)",
    ),
    "no weights": (lambda s: s.pop("state_dict_best"), "no 'state_dict' in the checkpoint"),
    "another classifier": (
        lambda s: change(s, "classifier", "module.gate", np.zeros(3)),
        r"the entries gate, weight belong to no known classifier \(causal: weight; plain: fc\.weight; scaled: ",
    ),
    "a classifier of vectors": (
        lambda s: change(s, "classifier", "module.weight", np.zeros(3)),
        r"the classifier's weight is \[3\], not \[classes, features\]",
    ),
    "other features": (
        lambda s: (
            change(s, "classifier", "module.weight", np.zeros((10, 64))),
            s.update(embed=np.zeros(64)),
        ),
        "the classifier needs 64 features, but resnet32_cifar has 128; give the backbone of the checkpoint",
    ),
    "no mean": (lambda s: s.pop("embed"), "the checkpoint has no 'embed', without which"),
    "another mean": (
        lambda s: s.update(embed=np.zeros(64)),
        r"'embed' has shape \[64\], but the classifier's features are \[128\]",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_mismatched_entries_are_errors(checkpoint, name):
    saved = checkpoint()
    make, message = CHANGES[name]
    make(saved)
    with pytest.raises(InputError, match=message) as error:
        long_tailed.from_torch(NAME, saved)
    assert "\n" not in str(error.value)


def test_scales_of_another_number_of_classes(checkpoint):
    saved = checkpoint("scaled")
    change(saved, "classifier", "module.scales", np.zeros(7))
    with pytest.raises(InputError, match=r"1 mis-shaped: scales \[7\] instead of \[10\]"):
        long_tailed.from_torch(NAME, saved)


def test_another_model(checkpoint):
    saved = checkpoint()
    with pytest.raises(InputError, match=r"not the weights of resnet18: \d+ missing: .*; \d+ left over: "):
        long_tailed.from_torch("resnet18", saved)
    with pytest.raises(InputError, match="backbone 'resnet33' is not one of resnet18, "):
        long_tailed.from_torch("resnet33", saved)


def test_variables_without_a_form_in_the_reference_are_refused(rng, checkpoint):
    variables = long_tailed.from_torch(NAME, checkpoint())
    with pytest.raises(InputError, match=r"not the variables of resnet10: .* left over: params/cb_block/"):
        long_tailed.to_torch("resnet10", variables)
    variables["params"]["head"]["whole"]["gain"] = np.zeros(3)
    with pytest.raises(InputError, match="variables gain, kernel, mean_feature belong to no classifier"):
        long_tailed.to_torch(NAME, variables)
