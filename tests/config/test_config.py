"""The configuration: checks of fields, the round trip through JSON, and what may change when a run is resumed."""

import json
import os
import subprocess
import sys
import warnings

import pytest
from fuzzing import cases
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from cfmlc_jax import config as configs
from cfmlc_jax import main as command
from cfmlc_jax.config import recipes, schema
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue

NAMES = tuple(schema.names(configs.default()))
SECTIONS = tuple(sorted({name.rpartition(".")[0] for name in NAMES} - {""}))


def changed(**fields):
    config = configs.default()
    for name, value in fields.items():
        section, _, leaf = name.replace("__", ".").rpartition(".")
        target = config
        for part in section.split(".") if section else []:
            target = target[part]
        target[leaf] = value
    return config


def test_the_default_is_valid_and_gets_locked():
    config = configs.validate(configs.default())
    with pytest.raises(AttributeError):
        config.optim.learning_rat = 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__source": "coc"}, "config.data.source 'coc' is not one of .*did you mean 'coco'"),
        ({"method": "pat"}, "config.method 'pat' is not one of pat_t, pat_i, whole"),
        ({"model__dtype": "float16"}, "config.model.dtype 'float16' is not one of auto, float32, bfloat16"),
        ({"patches__branches": "none"}, "config.patches.branches 'none' is not one of self, cross"),
        (
            {"model__head": "mldecoder"},
            "config.model.head 'mldecoder' is not one of .*did you mean 'ml_decoder'",
        ),
        ({"model__ml_decoder__queries": 0}, "config.model.ml_decoder.queries is 0; it must be at least 1"),
        ({"method": "whole"}, "method 'whole' has no patches: remove 'pivot' from effect.kinds"),
        ({"task": "single"}, "config.task 'single' is not one of multi_label, single_label; did you mean"),
        (
            {"task": "single_label"},
            "loss.name 'asymmetric' is for task 'multi_label': set config.task to it, not",
        ),
        (
            {"loss__name": "focal"},
            "config.loss.name 'focal' is for task 'single_label': set config.task to it",
        ),
        (
            {"task": "single_label", "loss__name": "focal"},
            "config.task 'single_label' is for whole images: set method to 'whole', not 'pat_t'",
        ),
        ({"views__transform": "area_crop"}, "views.transform 'area_crop' is for whole images: set method to"),
        (
            {"data__decorrelate__effective_share": 0.0},
            "config.data.decorrelate.effective_share is 0.0; it must be above 0 and at most 1",
        ),
        ({"data__balanced": True}, "config.data.balanced is for task 'single_label', not 'multi_label'"),
        (
            {"model__cosine__momentum": "schedul"},
            "momentum 'schedul' is not one of schedule; did you mean 'schedule'?",
        ),
        ({"model__cosine__momentum": 1.5}, r"config.model.cosine.momentum is 1.5; it must be in \[0, 1\]"),
        ({"model__cosine__momentum": None}, "config.model.cosine.momentum is None; it must be a number"),
        (
            {"model__cosine__momentum": "schedule"},
            "momentum 'schedule' follows the learning rate of optim.name 'sgd'",
        ),
        (
            {"report__writers": ("wand",)},
            "config.report.writers 'wand' is not one of jsonl, tensorboard, wandb, mlflow; did you mean 'wandb'",
        ),
        ({"report__writers": ("a module:Class",)}, "config.report.writers 'a module:Class' is not one of"),
        ({"report__writers": ("wandb", "wandb")}, "config.report.writers has wandb twice"),
        ({"evaluate__checkpoint": "latest"}, "config.evaluate.checkpoint 'latest' is not one of best, last"),
        ({"patches__source": "cut"}, "config.patches.source 'cut' is not one of host, device, map"),
        (
            {"patches__source": "device", "patches__size": 0},
            "config.patches.size is 0; it must be at least 1",
        ),
        (
            {"patches__source": "map", "patches__map": "", "effect__kinds": ()},
            "config.patches.map is empty; name a map",
        ),
        ({"effect__null": "black"}, "config.effect.null 'black' is not one of zeros, mean, blur"),
        ({"effect__kinds": ("hole",)}, "config.effect.kinds 'hole' is not one of"),
        ({"effect__alphas": (0.5, -1.0)}, "config.effect.alphas has -1.0"),
        ({"patches__grids": (1,)}, "config.patches.grids has 1; it must be at least 2"),
        ({"train__mask_rate": 1.5}, r"config.train.mask_rate is 1.5; it must be in \[0, 1\]"),
        ({"train__mask_with": "noise"}, "config.train.mask_with 'noise' is not one of zeros, mean, blur"),
        ({"patches__grids": ()}, "config.patches.grids is empty; give at least one number"),
        ({"patches__grids": (2, 1.5)}, "config.patches.grids has 1.5; it must be a tuple of whole numbers"),
        ({"patches__grids": (500, 2)}, "config.patches.grids has 500; it must be at most 64: each of"),
        (
            {"patches__grids": (50, 2), "views__image_size": 32},
            "patches.grids 50 cuts views of 32 pixels into patches without pixels",
        ),
        ({"seed": -1}, "config.seed is -1; it must be at least 0"),
        ({"seed": 2**32}, "config.seed is 4294967296; it must be at most 4294967295: keys have 32 bits"),
        ({"data__longtail__subset_seed": 2**63}, "config.data.longtail.subset_seed is .* at most 4294967295"),
        (
            {"data__workers": 10**6},
            "config.data.workers is 1000000; it must be at most 1024: each is a process",
        ),
        ({"data__threads": 10**6}, "config.data.threads is 1000000; it must be at most 1024"),
        ({"evaluate__batch_size": 10**9}, "at most 100000 images in a batch"),
        ({"train__log_every": 2**31}, "config.train.log_every is 2147483648; it must be at most 2147483647"),
        ({"optim__weight_decay": 1e39}, "config.optim.weight_decay is 1e[+]39; it must be at most 1e[+]38"),
        ({"optim__sgd__milestones": (0, 5)}, "config.optim.sgd.milestones has 0; it must be at least 1"),
        ({"effect__alphas": (float("inf"),)}, "config.effect.alphas has inf; it must be a finite number"),
        ({"data__test_splits": ()}, "config.data.test_splits is empty; give at least one split"),
        ({"data__val_split": ""}, "config.data.val_split names a split ''"),
        ({"data__test_splits": ("val", "")}, "config.data.test_splits names a split ''"),
        ({"data__test_splits": ("val", "val")}, "config.data.test_splits has val twice"),
        ({"patches__grids": (2, 2), "views__image_size": 64}, "config.patches.grids has 2 twice"),
        ({"effect__kinds": ("whole", "pivot", "whole")}, "config.effect.kinds has whole twice"),
        # The results of both would have the same name.
        ({"effect__alphas": (0.5, 0.5000001)}, "config.effect.alphas has 0.5 twice"),
        ({"model__frozen": ("head/.*", "head/.*")}, "config.model.frozen has head/.* twice"),
        ({"model__frozen": ("x{99999999999}",)}, "which is not a regular expression"),
        ({"data__root": "hf://bucket/coco"}, "config.data.root 'hf://bucket/coco' is an address"),
        ({"init_from": "az://bucket/run"}, "config.init_from 'az://bucket/run' is an address"),
        ({"data__vocabulary": "gs://bucket/vg256.json"}, "config.data.vocabulary .* is an address"),
        ({"init_from": "file:///runs/coco"}, "config.init_from 'file:///runs/coco' is an address"),
        (
            {"data__tfds__name": "voc\n2007"},
            r"config.data.tfds.name is .* must not contain the character '\\n'",
        ),
        ({"data__root": "caf\udce9"}, r"config.data.root is .* must not contain the character"),
        (
            {"patches__source": "map", "method": "pat_i"},
            "config.patches.source 'map' is for method 'pat_t'; set it to 'host' for 'pat_i'",
        ),
        ({"patches__source": "map"}, "cells of a map cannot .* remove 'pivot' from effect.kinds"),
        (
            {"method": "whole", "effect__kinds": ("owner",)},
            "no patches that say who owns a pixel: remove 'owner' .* or give a checkpoint .* config.effect.owners",
        ),
        ({"effect__classes": 0}, "config.effect.classes is 0; it must be at least 1"),
        ({"patches__pooling": "exklusive"}, "did you mean 'exclusive'?"),
        ({"patches__grids": (3,)}, "448 is not divisible by patches.grids 3; try 447 or 450"),
        ({"views__image_size": 0}, "config.views.image_size is 0; it must be at least 1"),
        ({"views__image_size": -448}, "must be at least 1"),
        ({"patches__overlap": 1.0}, r"config.patches.overlap is 1.0; it must be in \[0, 0.95\]"),
        ({"train__batch_size": 0}, "config.train.batch_size is 0"),
        ({"train__epochs": -1}, "config.train.epochs is -1"),
        ({"optim__learning_rate": 0.0}, "config.optim.learning_rate is 0.0; it must be above 0"),
        ({"optim__learning_rate": float("nan")}, "config.optim.learning_rate is nan"),
        ({"optim__ema_decay": 1.5}, r"config.optim.ema_decay is 1.5; it must be in \[0, 1\]"),
        ({"data__scenes__bias": 2.0}, "config.data.scenes.bias is 2.0"),
        ({"model__norm_groups": 0}, "config.model.norm_groups is 0; it must be at least 1"),
        (
            {"model__norm_groups": 3},
            "batch_size 128 is not divisible by config.model.norm_groups 3; try 126 or 129",
        ),
        (
            {"train__micro_batches": 4},
            r"micro_batches 4: batch statistics are of all 128 images .*\(model.norm_groups 1\).* set model.remat",
        ),
        (
            {"train__micro_batches": 3, "model__norm_groups": 4},
            "config.train.micro_batches 3 does not divide model.norm_groups 4, .*; try 1, 2 or 4",
        ),
        (
            {"train__micro_batches": 3, "model__frozen_norms": True},
            "config.train.micro_batches 3 does not divide train.batch_size 128; try 1, 2, 4, 8, 16, 32, 64 or 128",
        ),
        ({"train__micro_batches": 0}, "config.train.micro_batches is 0; it must be at least 1"),
        ({"model__remat": "block"}, "'block' is not one of none, blocks, everything; did you mean 'blocks'?"),
        ({"optim__clip_norm": -1.0}, "config.optim.clip_norm is -1.0; it must be at least 0"),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        configs.validate(changed(**fields))


@pytest.mark.parametrize(
    ("fields", "devices", "possible"),
    [
        ({"model__norm_groups": 4}, 1, [1, 2, 4]),
        ({"model__norm_groups": 4}, 64, [1, 2]),
        (
            {"model__norm_groups": 4, "model__name": "swin_l_384", "views__image_size": 384},
            8,
            [1, 2, 4, 8, 16],
        ),
        ({"model__name": "q2l_resnet101"}, 16, [1, 2, 4, 8]),
        ({"model__name": "q2l_tresnet_l_v2"}, 1, [1]),
    ],
)
def test_micro_batches_hold_whole_norm_groups_on_all_devices(fields, devices, possible):
    config = configs.validate(changed(**fields))
    assert configs.micro_batches(config, devices) == possible
    for number in possible:
        configs.validate(changed(**fields, train__micro_batches=number))


def test_a_run_may_resume_with_other_micro_batches_and_remat():
    old = configs.to_json(configs.validate(changed(model__norm_groups=4)))
    new = configs.validate(changed(model__norm_groups=4, train__micro_batches=4, model__remat="blocks"))
    assert configs.differences(old, configs.to_json(new)) == []
    del old["train"]["micro_batches"], old["model"]["remat"], old["optim"]["clip_norm"]
    assert configs.from_json(old).train.micro_batches == 1


def test_json_round_trip():
    config = configs.validate(changed(effect__alphas=(0.1, 2.0), data__source="scenes"))
    assert configs.from_json(configs.to_json(config)) == config


def test_a_field_of_another_version_is_named():
    fields = configs.to_json(configs.default())
    fields["optim"]["nesterov"] = 0.9
    with pytest.raises(InputError, match=r"config.optim.nesterov is not a field"):
        configs.from_json(fields)


def delete(config):
    del config.train.epochs


def as_it_is(name, value):
    """Sets a field without ConfigDict's check of its type."""

    def change(config):
        section, _, leaf = name.rpartition(".")
        target = configs.field(config, section) if section else config
        with target.ignore_type():
            target[leaf] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (as_it_is("train.epoch", 3), "config.train.epoch is not a field .* did you mean train.epochs?"),
        (as_it_is("learning_rate", 0.1), "config.learning_rate is not .* did you mean optim.learning_rate?"),
        (as_it_is("trian", ConfigDict({"epochs": 3})), "config.trian is not a field"),
        (as_it_is("quite other", 3), "config.quite other is not a field .* the files of cfmlc_jax/config list"),
        (as_it_is("train.epochs", "3"), "config.train.epochs is '3'; it must be a whole number"),
        (as_it_is("train.epochs", 3.0), "config.train.epochs is 3.0; it must be a whole number"),
        (as_it_is("train.epochs", True), "config.train.epochs is True; it must be a whole number"),
        (as_it_is("train.epochs", None), "config.train.epochs is None; it must be a whole number"),
        (as_it_is("train.epochs", 10**5000), "config.train.epochs is a number with thousands of digits"),
        (as_it_is("train.early_stop", 1), "config.train.early_stop is 1; it must be True or False"),
        (as_it_is("optim.learning_rate", "1e-3"), "config.optim.learning_rate is '1e-3'; it must be a number"),
        (as_it_is("effect.alphas", (0.5, "1")), "config.effect.alphas has '1'; it must be a tuple of numbers"),
        (as_it_is("effect.alphas", 0.5), r"config.effect.alphas is 0.5; .* a tuple of numbers, such as \(0.5,\)"),
        (as_it_is("model.frozen", (3,)), "config.model.frozen has 3; it must be a tuple of strings"),
        (as_it_is("data.root", None), "config.data.root is None; it must be a string"),
        (as_it_is("train", 5), "config.train is 5, but it is a section; set its fields: config.train.batch_size"),
        (as_it_is("train", None), "config.train is None, but it is a section"),
        (as_it_is("seed", ConfigDict({"weights": 1})), "config.seed is a section; it must be a whole number"),
        (as_it_is("train", ConfigDict({"epochs": 3})), "config.train.batch_size is missing; start from"),
        (delete, "config.train.epochs is missing; start from cfmlc_jax.config.default()"),
        (as_it_is("seed", config_dict.required_placeholder(int)), "config.seed is a placeholder without a value"),
    ],
)  # fmt: skip
def test_a_file_with_other_fields_or_types(change, message):
    config = configs.default()
    change(config)
    with pytest.raises(InputError, match=message) as raised:
        configs.validate(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("config", [None, 3, {"seed": 0}, [("seed", 0)]])
def test_invalid_configuration_files_are_refused(config):
    with pytest.raises(InputError, match="start from cfmlc_jax"):
        configs.validate(config)


def test_a_field_name_with_a_line_break_is_a_one_line_error():
    fields = configs.to_json(configs.default())
    fields["data"] = {"\n": None}
    with pytest.raises(InputError, match=r"config\.'data\.\\n' is not a field"):
        configs.from_json(fields)


def test_compatible_types_are_converted():
    config = configs.default()
    config.optim.learning_rate = 1
    config.patches.grids = [2, 4]
    config.effect.alphas = (1, 0.5)
    checked = configs.validate(config)
    assert checked.patches.grids == (2, 4)
    assert [type(value) for value in (checked.optim.learning_rate, *checked.effect.alphas)] == [float] * 3
    stored = json.loads(json.dumps(configs.to_json(config)))
    assert configs.from_json(stored) == checked


# Wrong values of every kind that a field may get by mistake.
MISTAKES = (
    *(None, True, -1, 0, 1, 1.5, 10**20, 10**400, float("nan"), float("inf"), -1e-300, "", "abc", "a\nb", "a\0b"),
    *("\udce9", "x" * 5000, [], ["a"], [None], [[1]], [0.5, 0.5], {}, {"a": 1}, [{}]),
)  # fmt: skip


def assert_named(error, name):
    """The message is one line and names the field, or a field inside the section."""
    assert "\n" not in str(error)
    assert name.rpartition(".")[2] in str(error)
    assert len(str(error)) < 6000


@pytest.mark.parametrize("name", [*NAMES, *SECTIONS])
def test_every_field_with_every_kind_of_mistake(name):
    for value in MISTAKES:
        fields = configs.to_json(configs.default())
        section, _, leaf = name.rpartition(".")
        (configs.field(fields, section) if section else fields)[leaf] = value
        try:
            config = configs.from_json(fields)
        except InputError as error:
            assert_named(error, name)
            continue
        assert configs.from_json(json.loads(json.dumps(configs.to_json(config)))) == config
        kinds = (
            (float, str) if name == "model.cosine.momentum" else type(configs.field(configs.default(), name))
        )
        assert isinstance(configs.field(config, name), kinds)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@cases(500)
@given(st.sampled_from([*NAMES, *SECTIONS]), JSON)
def test_any_value_of_a_stored_configuration(name, value):
    fields = configs.to_json(configs.default())
    section, _, leaf = name.rpartition(".")
    (configs.field(fields, section) if section else fields)[leaf] = value
    with warnings.catch_warnings(action="ignore"):  # from `re`, about odd expressions
        try:
            configs.from_json(fields)
        except InputError as error:
            assert_named(error, name)


@cases(150)
@given(JSON | st.dictionaries(st.sampled_from([*NAMES, "data", "model", "seed"]), JSON))
def test_any_stored_configuration_is_read_or_refused(fields):
    try:
        configs.from_json(fields)
    except InputError as error:
        assert_named(error, "")


TINY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs", "tiny.py")


def parse(monkeypatch, *flags):
    arguments = ["main", f"--config={TINY}", *flags]
    monkeypatch.setattr(sys, "argv", arguments)
    return command.parse(command.define_flags(), arguments)


@cases(200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*NAMES, *SECTIONS]),
    st.sampled_from(
        ("", "()", "(", "None", "nan", "-1", "1e999", "1" + "0" * 5000, "{'a': 1}", "((1, 2), 3)", "a\nb", "~no/x")
    )
    | st.text(max_size=12),
)  # fmt: skip
def test_any_value_of_a_flag(monkeypatch, name, text):
    with warnings.catch_warnings(action="ignore"):
        try:
            parse(monkeypatch, f"--config.{name}={text}")
        except InputError as error:
            assert_named(error, name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patches__pooling": "exclusive"}, "attention branch .* would never be trained; .* to 'self'"),
        ({"optim__ema_decay": 1.0}, "config.optim.ema_decay is 1: the averaged weights would stay"),
        ({"loss__clip": 1.0}, "config.loss.clip is 1: absent classes would have no loss"),
        (
            {"model__head": "cosine", "model__cosine__momentum": 1.0},
            "config.model.cosine.momentum is 1: the mean feature",
        ),
        ({"optim__name": "sgd"}, r"config.optim.sgd.milestones \(120, 160\) has 120, but train.epochs is 80"),
        (
            {"data__test_splits": ("val", "train")},
            "config.data.test_splits has 'train', which is the training split",
        ),
        ({"data__val_split": "train"}, "config.data.val_split has 'train', which is the training split"),
        (
            {"data__source": "tfds", "data__tfds__val_split": "train"},
            "config.data.tfds.val_split 'train' is also the train_split",
        ),
    ],
)
def test_contradictions_are_refused_for_training_and_accepted_in_checkpoints(fields, message):
    config = configs.validate(changed(**fields))
    with pytest.raises(InputError, match=message):
        configs.require_trainable(config)
    assert configs.from_json(configs.to_json(config)) == config


@pytest.mark.parametrize(
    "fields",
    [
        {"patches__pooling": "exclusive", "patches__branches": "self"},
        {"optim__name": "sgd", "optim__sgd__schedule": "cosine"},
        {"optim__name": "sgd", "optim__sgd__milestones": ()},
        {"optim__name": "sgd", "optim__sgd__milestones": (40, 80)},
        {"optim__ema_decay": 0.0},
    ],
)
def test_apparent_contradictions_are_accepted(fields):
    configs.require_trainable(configs.validate(changed(**fields)))


def test_unused_fields_are_listed():
    assert configs.unused(configs.validate(configs.default())) == []
    config = changed(
        optim__sgd__momentum=0.5, optim__sgd__drop=0.5, loss__focal_gamma=3.0, data__tfds__name="voc",
        views__area_crop__jitter=0.1, patches__size=32, patches__map="layer2", model__ml_decoder__queries=7,
    )  # fmt: skip
    assert set(configs.unused(configs.validate(config))) == {
        "data.tfds.name", "loss.focal_gamma", "optim.sgd.drop", "optim.sgd.momentum", "views.area_crop.jitter",
        "patches.size", "patches.map", "model.ml_decoder.queries",
    }  # fmt: skip
    config = changed(
        method="whole", effect__kinds=(), patches__branches="self", patches__grids=(4,), views__squeeze__augment=False
    )  # fmt: skip
    assert configs.unused(configs.validate(config)) == ["patches.grids", "patches.branches"]
    config.train.mask_rate = 0.5
    assert configs.unused(configs.validate(config)) == ["patches.branches"]


VARIANTS = {
    "cgn_digits": ("", "colored", "wildlife", "paper", "smoke"),
    "cgn_imagenet": ("", "tiny"),
    "cgn_mnist": ("", "colored", "double_colored", "wildlife"),
    "cgn_scenes": ("", "smoke"),
    "scenes": ("", "smoke", "asl", "exclusive", "photos", "photos_exclusive"),
    "longtail_digits": ("", "smoke", *recipes.LONG_TAILED),
    "longtail_cifar": ("", *(f"{each},{name}" for each in ("cifar10", "cifar100") for name in recipes.LONG_TAILED)),
    "longtail_imagenet": tuple(recipes.LONG_TAILED),
    "longtail_places": tuple(recipes.LONG_TAILED),
}  # fmt: skip
FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "configs")
FILES = sorted(name.removesuffix(".py") for name in os.listdir(FOLDER) if name.endswith(".py"))


@pytest.mark.parametrize("file", FILES)
def test_every_configuration_and_variant_can_be_trained(file):
    for variant in VARIANTS.get(file, ("",)):
        argument = f"--config={os.path.join(FOLDER, file)}.py" + (f":{variant}" if variant else "")
        configs.require_trainable(command.parse(command.define_flags(), ["main", argument]))


def test_paths_are_compared_after_resolving(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "link").symlink_to(tmp_path / "runs")

    def differences(name, old, new):
        old, new = (configs.to_json(changed(**{name: value})) for value in (old, new))
        return configs.differences(old, new)

    for other in ("runs/a/", "./runs/a", "runs/b/../a", str(tmp_path / "runs" / "a"), "link/a"):
        assert differences("init_from", "runs/a", other) == []
        assert differences("data__vocabulary", other, "runs/a") == []
    assert differences("init_from", "~/a", str(tmp_path / "home" / "a")) == []
    assert differences("init_from", "runs/a", "runs/b") == ["init_from: 'runs/a' -> 'runs/b'"]
    assert differences("init_from", "", ".") == ["init_from: '' -> '.'"]


def test_fields_that_a_resumed_run_may_change():
    old = configs.to_json(configs.default())
    new = configs.to_json(
        changed(
            data__workers=2, effect__null="zeros", report__writers=("tensorboard",), data__root="/elsewhere"
        )
    )
    assert configs.differences(old, new) == []
    new = configs.to_json(changed(optim__learning_rate=1.0, train__epochs=3))
    assert configs.differences(old, new) == ["optim.learning_rate: 0.0001 -> 1.0", "train.epochs: 80 -> 3"]


@pytest.mark.parametrize("system", configs.SYSTEMS)
def test_writers_of_every_system(system):
    config = configs.default(system)
    assert configs.validate(config).report.writers == ("jsonl",)
    config.report.writers, config.report.tags = ("wandb", "package.module:Class"), ("first",)
    assert configs.unused(configs.validate(config)) == []
    config.report.writers = ("tensorboard",)
    assert configs.unused(configs.validate(config)) == ["report.tags"]
    config.report.writers = ("wand",)
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        configs.validate(config)


def test_importing_the_configuration_starts_no_backend():
    """Programs set JAX's platforms and cache after their imports."""
    code = (
        "from cfmlc_jax import config; import jax, jax._src.xla_bridge as bridge; config.validate(config.default()); "
        "assert not bridge._backends; jax.config.update('jax_platforms', 'cpu'); jax.devices()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_models_built_without_a_configuration_have_its_defaults():
    config = configs.default()
    fields = catalogue.Model(config.model.name)
    for name in ("head", "frozen", "norm_groups", "dtype", "precision"):
        assert getattr(fields, name) == config.model[name]
    for section in ("cosine", "ml_decoder"):
        options = getattr(fields, section)._asdict()
        assert options == {name: config.model[section][name] for name in options}
    assert catalogue.Patches()._asdict() == {name: config.patches[name] for name in catalogue.Patches._fields}


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_type_of_the_computation_is_that_of_the_platform_unless_given(platform):
    expected = "float32" if platform == "cpu" else "bfloat16"
    assert configs.on_platform(configs.validate(configs.default()), platform).model.dtype == expected
    assert catalogue.compute_dtype("auto", platform) == expected
    generator = configs.validate(configs.default("cgn_imagenet"))
    assert configs.on_platform(generator, platform).generator.dtype == expected
    given = configs.validate(changed(model__dtype="float32"))
    assert configs.on_platform(given, platform) is given
    digits = configs.validate(configs.default("cgn"))
    assert configs.on_platform(digits, platform) is digits


def test_weights_after_the_last_epoch_are_refused():
    late = changed(data__decorrelate__effective_share=0.5, data__decorrelate__from_epoch=81)
    with pytest.raises(
        InputError, match=r"from_epoch is 81, but train.epochs is 80: no image would be drawn"
    ):
        configs.require_trainable(configs.validate(late))
    single = changed(
        task="single_label",
        method="whole",
        loss__name="cross_entropy",
        data__decorrelate__effective_share=0.5,
    )
    with pytest.raises(InputError, match=r"config.data.decorrelate is for task 'multi_label'"):
        configs.validate(single)


CELLS = {"patches__source": "map", "effect__kinds": ("whole",), "train__removal__rate": 0.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            CELLS | {"train__removal__from_epoch": 81},
            "from_epoch is 81, but train.epochs is 80: no class would be removed",
        ),
        (
            {"train__removal__rate": 0.5},
            "removal.rate is 0.5, but only cells of a map .*, not patches.source 'host'; set method to 'pat_t' and",
        ),
        (
            CELLS
            | {
                "train__removal__exchange": 0.5,
                "train__micro_batches": 2,
                "train__batch_size": 128,
                "model__norm_groups": 2,
            },
            "from another image of the batch, which train.micro_batches 2 divide; set exchange to 0, or micro_batches to 1",
        ),
        ({"train__removal__rate": 1.5}, r"config.train.removal.rate is 1.5; it must be in \[0, 1\]"),
    ],
)
def test_removals_that_cannot_be_are_refused(fields, message):
    configs.require_trainable(configs.validate(changed(**CELLS)))
    with pytest.raises(InputError, match=message):
        configs.require_trainable(configs.validate(changed(**fields)))


def test_an_option_of_another_head_is_refused_or_named():
    with pytest.raises(
        InputError, match=r"tau_norm is for model.head 'dot_product', not 'linear'; set it to 0"
    ):
        configs.validate(changed(model__dot_product__tau_norm=1.0))


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        (("q2l_resnet50", "linear"), ("q2l_resnet50", "query2label")),
        (("resnet50", "query2label"), ("q2l_resnet50", "query2label")),
        (("q2l_resnet50", "query2label"), ("q2l_resnet50", "query2label")),
        (("resnet50", "ml_decoder"), ("resnet50", "ml_decoder")),
    ],
)
def test_prefix_and_head_query2label_are_made_consistent(fields, stored):
    config = configs.validate(changed(model__name=fields[0], model__head=fields[1]))
    assert (config.model.name, config.model.head) == stored


@pytest.mark.parametrize("text", ["schedule", "0.5"])
def test_a_field_of_two_types_as_a_flag(monkeypatch, text):
    config = parse(monkeypatch, "--config.optim.name=sgd", f"--config.model.cosine.momentum={text}")
    assert config.model.cosine.momentum == (text if text == "schedule" else 0.5)
