"""What a new run takes from the checkpoint that it is initialised from."""

import functools

import jax
import numpy as np
import optax
import pytest
from training import Training, objective

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.classify import finetune
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear, query2label


@pytest.fixture(autouse=True, scope="module")
def small_arrays_are_split():
    """Over "fsdp", as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "LEAST_SPLIT", 2)
        yield


NAMES = ("cat", "dog", "owl")


def classifier(head, width=8):
    backbone = resnet.ResNet(stage_sizes=(1, 1), block=resnet.BasicBlock, width=width, small_stem=True)
    return Classifier(backbone=backbone, head=head)


@functools.cache
def new_training(classes=3, attention="cross", head=linear.LinearHead, width=8):
    """A training on 4 × 2 devices, before its first step."""
    return Training(
        classifier(head(classes, attention), width),
        (1, 5, 32, 32, 3),
        objective(),
        optax.adam(1.0),
        mesh=meshes.create(fsdp=2),
        ema_decay=0.75,
    ).start()


@pytest.fixture
def stored(tmp_path, rng):
    """Makes a checkpoint like that of a converted file; returns its path and its random averaged variables."""

    def make(class_names=None, classes=3, attention="cross"):
        shapes = new_training(classes, attention).abstract.learned["variables"]
        weights, average = (
            jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes) for _ in range(2)
        )
        checkpoints.write(
            tmp_path / "stored",
            model={"variables": weights, "average": average, "mean_colour": np.full(3, 0.5, np.float32)},
            meta={
                "config": configs.to_json(configuration("tiny", attention)),
                "class_names": class_names,
                "num_classes": classes,
            },
        )
        return tmp_path / "stored", average

    return make


def configuration(name, branches):
    config = configs.default()
    config.model.name = name
    if branches == "none":
        config.method = "pat_i"
    else:
        config.patches.branches = branches
    return config


def begin(path, name="mine", **model):
    """The state initialised from a checkpoint, and the printed lines."""
    training, lines = new_training(**model), []
    state = finetune.start_from(
        path,
        training.state,
        config=configuration(name, model.get("attention", "cross")),
        class_names=NAMES[: model.get("classes", 3)],
        print_line=lines.append,
    )
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, training.abstract
    )
    assert int(state.step) == 0
    return state.learned, lines


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("class_names", [None, list(NAMES)])
def test_the_average_of_all_variables_is_taken(stored, class_names):
    path, average = stored(class_names)
    state, lines = begin(path)
    assert_equal(state["variables"], average)
    assert_equal(state["average"], average)
    assert lines == [f"initialised from {path}: backbone and head (tiny, branches cross, 3 classes)"]
    # A step donates the buffers of both.
    of_weights, of_average = (
        {leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
        for tree in (state["variables"], state["average"])
    )
    assert not of_weights & of_average
    # All other entries are those of a new run.
    for name in ("mean_colour", "opt_state"):
        assert_equal(state[name], new_training().state.learned[name])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"classes": 2}, {}, "tiny, branches cross, 2 classes -> mine, branches cross, 3 classes"),
        ({"attention": "none"}, {}, "tiny, branches none, 3 classes -> mine, branches cross, 3 classes"),
        ({"class_names": ["cat", "dog", "emu"]}, {}, "branches cross, 3 classes -> mine"),
        (
            {"attention": "none"},
            {"head": query2label.Query2Label},
            "tiny, branches none, 3 classes -> mine, branches cross, 3 classes",
        ),
    ],
)
def test_a_head_of_other_classes_or_of_another_kind_is_new(stored, old, new, words):
    path, average = stored(**old)
    state, lines = begin(path, **new)
    assert_equal(state["variables"]["params"]["backbone"], average["params"]["backbone"])
    assert_equal(state["variables"]["batch_stats"], average["batch_stats"])
    assert_equal(state["variables"]["params"]["head"], new_training(**new).variables["params"]["head"])
    assert_equal(state["average"], state["variables"])
    assert len(lines) == 1
    assert "new head" in lines[0]
    assert words in lines[0]


def test_another_backbone_is_refused(stored):
    path, _ = stored()
    with pytest.raises(InputError) as error:
        begin(path, width=16)
    assert str(error.value) == (
        f"config.init_from {path} has another backbone, tiny instead of mine; set --config.model.name=tiny, or give "
        "other weights"
    )
    with pytest.raises(InputError) as error:
        begin(path, name="tiny", width=16)
    message = str(error.value)
    assert message.startswith(f"config.init_from {path} has another backbone (")
    assert "35 mis-shaped: batch_stats/backbone/bn1/mean [4] instead of [8], " in message
    assert "config.model.name" in message
    assert "\n" not in message


def test_missing_and_left_over_arrays_are_named(stored):
    path, _ = stored()
    state = new_training().state
    average = state.learned["average"]
    backbone = dict(average["params"]["backbone"])
    backbone["layer9_0"] = backbone.pop("layer2_0")
    average = average | {"params": average["params"] | {"backbone": backbone}}
    other = state.replace(learned=state.learned | {"average": average})
    with pytest.raises(
        InputError, match=r"missing: params/backbone/layer9_0/.*left over: params/backbone/layer2_0/"
    ):
        finetune.start_from(
            path, other, config=configuration("tiny", "cross"), class_names=NAMES, print_line=pytest.fail
        )


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")
    message = (
        r"config\.init_from: .*x\.safetensors \(1 bytes\) is truncated, damaged or not a safetensors file"
    )
    with pytest.raises(InputError, match=message):
        begin(path)


def test_a_generator_is_no_start(tmp_path):
    config = configs.to_json(configs.default(configs.CGN))
    model = {"generator": {"kernel": np.zeros(3)}, "average": {"kernel": np.zeros(3)}}
    checkpoints.write(
        tmp_path / "drawn", model=model, meta={"config": config, "class_names": ["a"], "num_classes": 1}
    )
    with pytest.raises(InputError, match=r"config\.init_from .*drawn is of a generator, not of a classifier"):
        begin(tmp_path / "drawn")
