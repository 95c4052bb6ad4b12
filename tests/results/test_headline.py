"""The numbers that trackers compare runs by."""

import json

import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.results.headline import headline


def test_without_an_evaluation(tmp_path):
    assert headline(tmp_path) == {}


def test_of_a_generator(tmp_path):
    accuracies = {
        "plain": {
            "test_iid": 99.0,
            "test": 40.5,
            "follows": {"shape": 1.0},
            "errors_follow": {},
            "train": 100.0,
        }
    }
    (tmp_path / "mechanisms.json").write_text(json.dumps(accuracies))
    assert headline(tmp_path) == {"final/plain/test_iid": 99.0, "final/plain/test": 40.5}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "mechanisms.json").write_text("{")
    with pytest.raises(InputError, match=r"mechanisms.json is damaged"):
        headline(tmp_path)
