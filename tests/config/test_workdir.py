"""Checkpoints of a workdir are of its configuration."""

import json

import numpy as np
import pytest

from cfmlc_jax import checkpoint
from cfmlc_jax import config as configs
from cfmlc_jax.config import workdir
from cfmlc_jax.errors import InputError


def fields(**changes):
    config = configs.default()
    for name, value in changes.items():
        config[name] = value
    return configs.to_json(config)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    workdir.require_own(tmp_path, {"config": fields()}, fields())
    with pytest.raises(
        InputError, match=r"^checkpoint .* is of another configuration \(seed: 1 -> 0\); move it"
    ):
        workdir.require_own(tmp_path, {"config": fields(seed=1)}, fields())


def test_a_run_that_was_killed_in_its_first_save_may_get_another_configuration(tmp_path):
    workdir.claim(tmp_path, fields())
    (tmp_path / "checkpoints" / "100.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not workdir.has_checkpoints(tmp_path)
    workdir.claim(tmp_path, fields(seed=1))
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    # The next save ends.
    (tmp_path / "checkpoints" / "100.orbax-checkpoint-tmp").rename(tmp_path / "checkpoints" / "100")
    assert workdir.has_checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"is a run of another configuration \(seed: 1 -> 2\)"):
        workdir.claim(tmp_path, fields(seed=2))


def test_a_checkpoint_that_was_set_aside_counts(tmp_path):
    (tmp_path / "damaged" / "40.1").mkdir(parents=True)
    assert workdir.has_checkpoints(tmp_path)


def test_without_config_json_any_readable_checkpoint_says_whose_the_run_is(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path / "checkpoints")
    for step, rank in ((1, 0.1), (2, 0.9)):
        meta = {"config": fields(), "class_names": ["a"]}
        kept.save(step, model={"w": np.zeros(2)}, training={"step": np.int32(step)}, meta=meta)
        kept.rank(step, rank, {})
    kept.close()
    (tmp_path / "checkpoints" / "2" / "meta" / "metadata").write_text("damaged")
    assert workdir.stored_fields(tmp_path) == fields()
    with pytest.raises(InputError, match=r"is a run of another configuration \(seed: 0 -> 1\)"):
        workdir.claim(tmp_path, fields(seed=1))
    (tmp_path / "checkpoints" / "1" / "meta" / "metadata").write_text("damaged")
    assert workdir.stored_fields(tmp_path) is None


def test_what_may_change_in_a_resumed_run_may_differ(tmp_path):
    changed = fields()
    changed["data"]["threads"] += 1
    workdir.require_own(tmp_path, {"config": changed}, fields())
