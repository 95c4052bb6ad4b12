"""Configurations of older versions: stored ones load and equal the present files; new ones must use new names."""

import copy
import importlib.util
import json
import warnings
from pathlib import Path

import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax import config as configs
from cfmlc_jax import main as command
from cfmlc_jax.config import older
from cfmlc_jax.errors import InputError

FOLDER = Path(__file__).parent / "older"
CONFIGS = Path(__file__).parents[2] / "configs"
# What the last version without `task` stored: all fields of its default, and the fields that its runs changed.
DEFAULT = json.loads((FOLDER / "default.json").read_text(encoding="utf-8"))
RUNS = json.loads((FOLDER / "runs.json").read_text(encoding="utf-8"))
OLD_NAMES = (*older.RENAMED, *older.RECAST, *older.RECAST_LATER)


def stored(**fields):
    """The old default with some fields changed, by dotted name."""
    config = copy.deepcopy(DEFAULT)
    for name, value in fields.items():
        section, _, leaf = name.rpartition(".")
        (configs.field(config, section) if section else config)[leaf] = value
    return config


def module(path):
    spec = importlib.util.spec_from_file_location("configuration", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def of_study(path, name):
    """The configuration of a run of a study, or of an evaluation of the run: "run, variant"."""
    name, _, variant = name.partition(", ")
    study = module(path).get_study(quick=False)
    run = study["runs"][name]
    config = module(CONFIGS.parent / study["base"]).get_config()
    for field, value in (run["fields"] | run["variants"].get(variant, {})).items():
        section, _, leaf = field.rpartition(".")
        (configs.field(config, section) if section else config)[leaf] = value
    return configs.validate(config)


def current(name):
    """The present configuration of an entry of RUNS: FILE, FILE:VARIANT or STUDY:RUN."""
    file, _, variant = name.partition(":")
    path = CONFIGS / f"{file}.py"
    if file.startswith("studies/"):
        return of_study(path, variant)
    get_config = module(path).get_config
    return configs.validate(get_config(variant) if variant else get_config())


@pytest.mark.parametrize("name", RUNS)
def test_an_older_stored_configuration_is_translated(name):
    # Older versions had no "auto".
    fields, config = stored(**RUNS[name]), configs.on_platform(current(name), "cpu")
    # Its default has changed since; a resumed run may change it.
    with config.unlocked():
        config.data.workers = fields["data"]["workers"]
        if config.data.normalise == "auto":  # a resumed run goes on with what it began with
            config.data.normalise, config.optim.ema_decay = "", fields["optim"]["ema_decay"]
    assert configs.from_json(fields) == config
    # A run of the older version can be resumed: no field differs.
    assert configs.differences(configs.completed(fields), configs.to_json(config)) == []


def test_translation_changes_nothing_else():
    fields = stored(**RUNS["longtail_imagenet:deconfound"])
    before = copy.deepcopy(fields)
    once = configs.translated(fields)
    assert fields == before
    assert configs.translated(once) is once
    now = configs.to_json(configs.default())
    assert configs.translated(now) is now


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"task": "multi_label", "method": "pat_t", "patches.source": "host", "patches.branches": "cross"}),
        ({"views.patch_size": 32}, {"patches.source": "device", "patches.size": 32}),
        ({"model.cells": "layer2", "effect.kinds": []}, {"patches.source": "map", "patches.map": "layer2"}),
        # The host also cut patches, which nothing used. A checkpoint trained so can still be read.
        (
            {"model.cells": "layer2", "views.patch_size": 32, "effect.kinds": []},
            {"patches.source": "map", "patches.map": "layer2", "patches.size": 32},
        ),
        ({"method": "pat_i", "model.attention": "none"}, {"method": "pat_i", "patches.branches": "cross"}),
        ({"model.name": "q2l_resnet50"}, {"model.name": "q2l_resnet50", "model.head": "query2label"}),
        ({"model.head": "linear"}, {"model.head": "linear"}),
        ({"model.groups": 7}, {"model.ml_decoder.queries": 7}),
        ({"model.cosine.mu": 0.5}, {"model.cosine.momentum": 0.5}),
        ({"views.augment": False}, {"views.squeeze.augment": False, "views.area_crop.augment": True}),
        # Without a crop these two fields had no effect.
        ({"views.flip": False, "views.jitter": 0.1}, {"views.padded_crop.flip": True, "views.area_crop.jitter": 0.4}),
        ({"evaluate.latest": True}, {"evaluate.checkpoint": "last"}),
        ({"train.null": "blur", "train.null_rate": 0.5}, {"train.mask_with": "blur", "train.mask_rate": 0.5}),
    ],
)  # fmt: skip
def test_fields_of_an_older_version(fields, expected):
    config = configs.from_json(stored(**fields))
    assert {name: configs.field(config, name) for name in expected} == expected


def test_options_of_crops_move_to_their_section():
    single = {"method": "asl", "model.attention": "none", "effect.kinds": [], "loss.name": "focal"}
    options = {"views.augment": False, "views.flip": False, "views.jitter": 0.25}
    area = configs.from_json(stored(**single, **options, **{"views.crop": "area"}))
    assert (area.task, area.method, area.views.transform) == ("single_label", "whole", "area_crop")
    assert area.views.area_crop.to_dict() == {"augment": False, "flip": False, "jitter": 0.25}
    assert area.views.padded_crop.to_dict() == {"augment": True, "flip": True}
    padded = configs.from_json(stored(**single, **options, **{"views.crop": "padded"}))
    assert padded.views.padded_crop.to_dict() == {"augment": False, "flip": False}
    assert padded.views.area_crop.to_dict() == {"augment": True, "flip": True, "jitter": 0.4}


def test_fields_missing_in_an_older_version_get_defaults():
    fields = {
        "method": "asl",
        "model": {"name": "resnet18", "attention": "none"},
        "effect": {"kinds": ["whole"]},
    }
    config = configs.from_json(fields)
    assert (config.method, config.model.name, config.patches.grids) == ("whole", "resnet18", (2,))


def test_differences_to_a_stored_run_have_the_new_names():
    new = configs.default()
    new.patches.grids, new.train.mask_rate, new.model.dtype = (4,), 0.5, "float32"
    differences = configs.differences(configs.completed(DEFAULT), configs.to_json(new))
    assert differences == ["patches.grids: [2] -> [4]", "train.mask_rate: 0.0 -> 0.5"]


MOVED = [
    ("views.grids", (3,), "config.views.grids is now config.patches.grids; set config.patches.grids to (3,)"),
    ("views.patch_size", 32, "set config.patches.source to 'device' and config.patches.size to 32"),
    ("model.cells", "layer1", "set config.patches.source to 'map' and config.patches.map to 'layer1'"),
    ("model.attention", "self", "of method 'pat_t'; .*; set config.patches.branches to 'self'"),
    ("model.attention", "none", "config.model.attention is now .* 'pat_i' and 'whole' have no such branches"),
    ("views.crop", "padded", "now config.views.transform; set config.views.transform to 'padded_crop'"),
    ("views.augment", False, "a field of each transform: config.views.squeeze.augment, "),
    ("views.flip", False, "config.views.padded_crop.flip and config.views.area_crop.flip"),
    ("views.jitter", 0.1, "config.views.area_crop.jitter"),
    ("model.groups", 7, "set config.model.ml_decoder.queries to 7"),
    ("model.statistics", "cifar", "set config.data.normalise to 'cifar'"),
    ("model.cosine.mu", 0.5, "set config.model.cosine.momentum to 0.5"),
    ("model.cosine.mu_from_rate", True, "set config.model.cosine.momentum to 'schedule'"),
    ("evaluate.latest", True, "set config.evaluate.checkpoint to 'last'"),
    ("evaluate.tau_norm", 1.0, "set config.model.dot_product.tau_norm to 1.0"),
    ("train.null", "blur", "set config.train.mask_with to 'blur'"),
    ("data.longtail.seed", 3, "set config.data.longtail.subset_seed to 3"),
    ("optim.milestones", (3, 4), r"set config.optim.sgd.milestones to \(3, 4\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "message"), MOVED)
def test_an_old_field_in_a_configuration_file_names_the_new_one(name, value, message):
    config = configs.default()
    section, _, leaf = name.rpartition(".")
    configs.field(config, section)[leaf] = value
    with pytest.raises(InputError, match=message.replace("(3,)", r"\(3,\)")) as raised:
        configs.validate(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value", "message"), MOVED)
def test_an_old_field_as_a_flag_names_the_new_one(monkeypatch, name, value, message):
    arguments = ["main", f"--config={CONFIGS / 'coco.py'}", f"--config.{name}={value}"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(InputError, match=message.replace("(3,)", r"\(3,\)")) as raised:
        command.parse(command.define_flags(), arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("system", configs.SYSTEMS)
@pytest.mark.parametrize(("value", "writers"), [(False, ("jsonl",)), (True, ("jsonl", "tensorboard"))])
def test_event_files_were_a_field_of_their_own_in_all_systems(system, value, writers):
    stored = configs.to_json(configs.default(system))
    stored["report"] = {"tensorboard": value}
    assert configs.from_json(stored).report.writers == writers
    assert configs.differences(configs.completed(stored), configs.to_json(configs.default(system))) == []
    assert stored["report"] == {"tensorboard": value}


def test_every_new_name_is_a_field():
    names = set(configs.flat(configs.to_json(configs.default())))
    assert set(older.RENAMED.values()) <= names
    assert not set(OLD_NAMES) & names


def test_asl_is_taken_for_whole(monkeypatch):
    config = configs.default()
    config.method, config.effect.kinds = "asl", ("whole",)
    assert configs.validate(config).method == "whole"
    arguments = ["main", f"--config={CONFIGS / 'coco.py'}", "--config.method=asl", "--config.effect.kinds=()"]
    monkeypatch.setattr("sys.argv", arguments)
    assert command.parse(command.define_flags(), arguments).method == "whole"
    fields = configs.to_json(configs.default()) | {"method": "asl"}
    fields["effect"]["kinds"] = []
    assert configs.from_json(fields).method == "whole"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def assert_one_line(error):
    assert "\n" not in str(error)
    assert len(str(error)) < 6000


@cases(400)
@given(
    st.sampled_from([*OLD_NAMES, "data", "views", "model", "model.cosine", "optim", "loss", "loss.name"]),
    JSON,
)
def test_any_value_of_an_old_field(name, value):
    for fields in (stored(**{name: value}), stored(**{name: value}) | {"task": "multi_label"}):
        with warnings.catch_warnings(action="ignore"):
            try:
                configs.from_json(fields)
            except InputError as error:
                assert_one_line(error)
