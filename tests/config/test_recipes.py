"""Recipes of published results: each file and variant loads, is valid, and its model can be built."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax import main as command
from cfmlc_jax.classify import build
from cfmlc_jax.config import recipes
from cfmlc_jax.errors import InputError

FOLDER = Path(__file__).parents[2] / "configs" / "reference"
# Whether the reference synchronises batch statistics over its GPUs, by file.
SYNCHRONISED = {
    "resnet101": False,
    "tresnet_l": False,
    "tresnet_l_v2_in21k": False,
    "q2l_tresnet_l_v2_in21k": True,
    "q2l_tresnet_l_v2_open_images": True,
}
CLASSES = {"coco": 80, "voc2007": 20, "vg256": 256}


def load(file, variant=""):
    argument = f"--config={FOLDER / file}.py" + (f":{variant}" if variant else "")
    return command.parse(command.define_flags(), ["main", argument])


def test_every_published_row_has_a_file():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SYNCHRONISED)


@pytest.mark.parametrize(("data_set", "method"), list(itertools.product(recipes.DATA_SETS, recipes.METHODS)))
@pytest.mark.parametrize("file", SYNCHRONISED)
def test_every_variant_is_valid(file, data_set, method):
    config = load(file, f"{data_set},{method}")
    stored = "whole" if method == "asl" else method
    assert (config.data.source, config.method, config.train.batch_size) == (data_set, stored, 128)
    assert config.init_from.startswith("pretrained/")
    on_four_gpus = method == "pat_t"
    assert config.data.reshuffle != on_four_gpus
    assert config.model.norm_groups == (4 if on_four_gpus and not SYNCHRONISED[file] else 1)


@pytest.mark.parametrize("file", SYNCHRONISED)
def test_parts_of_a_variant_can_be_left_out(file):
    assert load(file) == load(file, "coco") == load(file, "pat_t") == load(file, "coco,pat_t")
    assert load(file, "asl") == load(file, "asl,coco") == load(file, "whole")
    assert load(file, "vg256") == load(file, "vg256,pat_t")


def test_both_query2labels_differ_by_their_weights_alone():
    one, other = (load(f"q2l_tresnet_l_v2_{weights}") for weights in ("in21k", "open_images"))
    fields = [configs.to_json(config) for config in (one, other)]
    assert [line.split(":")[0] for line in configs.differences(*fields)] == ["init_from"]


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("resnet101", "voc2007"),
        ("tresnet_l", "coco"),
        ("tresnet_l_v2_in21k", "coco,asl"),
        ("q2l_tresnet_l_v2_in21k", "vg256"),
    ],
)
def test_models_can_be_built_and_trained(file, variant):
    """Only shapes: a forward pass in training mode, of the smallest batch that the norm groups divide."""
    config = load(file, variant)
    classes = CLASSES[config.data.source]
    parts = build.create(config, classes)
    images = config.model.norm_groups
    views = jax.ShapeDtypeStruct((images, *parts.sample_shape("train")[1:]), jnp.float32)
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    forward = functools.partial(parts.model.init_with_output, train=True)
    outputs, _ = jax.eval_shape(forward, keys, views)
    patches = 4 if config.method == "pat_t" else 0
    assert outputs.whole.shape == (images, 1 + patches, classes)
    assert (outputs.attention is None) == (config.method == "whole")


@pytest.mark.parametrize(
    "variant", ["cocoa", "coco,voc2007", "asl,asl", "coco;asl", "coco,", "resnet101", "coco,asl,pat_i"]
)
def test_unknown_variants_are_refused(variant):
    with pytest.raises(InputError, match=r"is not of the form DATA,METHOD: one of coco, voc2007, vg256"):
        load("resnet101", variant)
