"""Checkpoints of a workdir are of its configuration."""

import pytest

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


def test_what_may_change_in_a_resumed_run_may_differ(tmp_path):
    changed = fields()
    changed["data"]["threads"] += 1
    workdir.require_own(tmp_path, {"config": changed}, fields())
