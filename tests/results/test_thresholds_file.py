"""The file of thresholds: what is read is what was written, and what does not fit is one line."""

import json

import numpy as np
import pytest

from cfmlc_jax import weights_folder
from cfmlc_jax.errors import InputError
from cfmlc_jax.results import thresholds
from cfmlc_jax.results.predictions import COMBINED, WHOLE
from cfmlc_jax.results.thresholds import Thresholds

NAMES = ["cat", "=dog"]
# Not exact in decimal: a float32 is written so that the same one is read.
VALUES = np.array([0.1, 1 / 3], np.float32)


def made(**fields):
    fields = {
        "rule": "precision",
        "split": "val",
        "images": 7,
        "class_names": NAMES,
        "thresholds": {"average": {COMBINED: VALUES.tolist()}},
        "precision": 0.8,
        "fallbacks": {"no positive image": ["cat"]},
    } | fields
    return Thresholds(**fields)


def test_what_is_read_is_what_was_written(tmp_path):
    thresholds.write(tmp_path, made())
    back = thresholds.read(tmp_path, NAMES)
    assert back == made()
    assert thresholds.read(tmp_path, None) == made()
    chosen = back.of("average", COMBINED)
    assert chosen.dtype == np.float32
    np.testing.assert_array_equal(chosen, VALUES)
    assert back.of("average", WHOLE) is None
    assert back.of("weights", COMBINED) is None
    assert back.title == "precision of at least 0.8 on val"
    assert (thresholds.of_class(back, 1), thresholds.of_class(None, 1)) == (VALUES[1], 0.5)
    thresholds.remove(tmp_path)
    assert thresholds.read(tmp_path, NAMES) is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat"], "2 instead of the classifier's 1, class 1 is '=dog' instead of none"),
        (["cat", "bird"], "class 1 is '=dog' instead of 'bird'"),
        (["=dog", "cat"], "class 0 is 'cat' instead of '=dog'"),
    ],
)
def test_thresholds_of_other_classes_are_refused(tmp_path, names, words):
    thresholds.write(tmp_path, made())
    with pytest.raises(InputError, match="has thresholds of other classes") as caught:
        thresholds.read(tmp_path, names)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2, "version": "9.0"}, "of version 9.0 of cfmlc_jax, this is"),
        ({"rule": "guess"}, "'guess' is not one of fixed, f1"),
        ({"thresholds": {"average": {"combined": [0.5]}}}, "has 1 numbers for 2 classes"),
        ({"thresholds": {"average": {"combined": [0.5, 1.5]}}}, "has 1.5, which is not a probability"),
        ({"thresholds": {"average": {"combined": [0.5, float("nan")]}}}, "has nan"),
        ({"thresholds": {"average": {"sum": [0.5, 0.5]}}}, "'sum' is not the name of a prediction"),
        ({"images": "many"}, "it.images is 'many', not a whole number"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, words):
    path = tmp_path / thresholds.FILE
    path.write_text(json.dumps(made().to_json() | change))
    with pytest.raises(InputError) as caught:
        thresholds.read(tmp_path, NAMES)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_of_something_else(tmp_path, content):
    (tmp_path / thresholds.FILE).write_text(content)
    with pytest.raises(InputError, match="fit them again"):
        thresholds.read(tmp_path, NAMES)


def test_an_exported_folder_has_them_in_its_configuration(tmp_path):
    (tmp_path / weights_folder.WEIGHTS).touch()
    meta = {"config": {}, "class_names": NAMES}
    (tmp_path / weights_folder.CONFIG).write_text(json.dumps(meta))
    assert thresholds.read(tmp_path, NAMES) is None
    (tmp_path / weights_folder.CONFIG).write_text(json.dumps(meta | {"thresholds": made().to_json()}))
    assert thresholds.read(tmp_path, NAMES) == made()
    with pytest.raises(InputError, match="export it again"):
        thresholds.write(tmp_path, made())
