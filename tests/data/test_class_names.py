"""Class names without a data set at hand."""

import json

import pytest

from cfmlc_jax.data.class_names import KNOWN, class_names
from cfmlc_jax.errors import InputError


def test_built_in_class_names():
    numbers = {"coco": 80, "voc2007": 20, "scenes": 10, "photo_scenes": 10}
    assert {place: len(names) for place, names in KNOWN.items()} == numbers
    assert all(len(set(names)) == len(names) for names in KNOWN.values())
    # Places in the annotations' order of categories, ids 1, 18 and 90.
    coco = class_names("coco")
    assert (coco[0], coco[16], coco[79]) == ("person", "dog", "toothbrush")


def test_from_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("cat\n\n  fire hydrant \nowl\n")
    assert class_names(str(tmp_path / "mine.txt")) == ("cat", "fire hydrant", "owl")


def test_from_a_vocabulary(tmp_path):
    (tmp_path / "vg.json").write_text(json.dumps({"tree": ["tree", "oak"], "car": ["car"]}))
    assert class_names(str(tmp_path / "vg.json")) == ("tree", "car")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "name one of coco, voc2007, scenes, photo_scenes, or a file with one class per line"),
        ("\n \n", "no class in it"),
        ("cat\ndog\ncat\n", "class 'cat' is listed twice"),
        ("caf\u00e9\ncafe\u0301\n", "class 'caf\u00e9' is listed twice"),
        ("cat\nd\x00g\n", r"mine\.txt line 2: class name 'd\\x00g'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        class_names(str(tmp_path / "mine.txt"))
