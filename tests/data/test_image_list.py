import pickle

import numpy as np
import pytest

from cfmlc_jax.data.sources.image_list import STEMS, ImageList
from cfmlc_jax.errors import InputError

TRAIN = "train/zoo/a.jpg 0\ntrain/airfield/b c.jpg 1\ntrain/zoo/d.jpg 0\n\ntrain/bar/e.jpg 2\n"
VAL = "val/f.jpg 2\nval/g.jpg 0\n"
IMAGES = (
    "train/zoo/a.jpg",
    "train/airfield/b c.jpg",
    "train/zoo/d.jpg",
    "train/bar/e.jpg",
    "val/f.jpg",
    "val/g.jpg",
)


@pytest.fixture
def write(tmp_path):
    """Writes lists and the images that they may name; hands back the root."""
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def write(train=TRAIN, val=VAL):
        for split, text in (("train", train), ("val", val)):
            (tmp_path / f"Places_LT_{split}.txt").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def make(root, split="train"):
    return ImageList(root, split, stem=STEMS["places_lt"])


def test_lines_become_records_in_their_order(write):
    root = write()
    source = make(root)
    assert source.ids == ["train/zoo/a.jpg", "train/airfield/b c.jpg", "train/zoo/d.jpg", "train/bar/e.jpg"]
    np.testing.assert_array_equal(source.labels, [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert source.labels.dtype == np.uint8
    assert source.class_counts.tolist() == [2, 1, 1]
    record = source[1]
    assert record["image"] == b"train/airfield/b c.jpg"
    assert record["where"] == str(root / "train/airfield/b c.jpg")


def test_another_split_has_the_classes_and_counts_of_training(write):
    source = make(write(), "val")
    np.testing.assert_array_equal(source.labels, [[0, 0, 1], [1, 0, 0]])
    assert source.class_names == ("zoo", "airfield", "bar")
    assert source.class_counts.tolist() == [2, 1, 1]


def test_class_names(write):
    root = write()
    assert make(root).class_names == ("zoo", "airfield", "bar")
    (root / "classes.txt").write_text("Zoo\nAir field\n\nBar\n")
    assert make(root, "val").class_names == ("Zoo", "Air field", "Bar")
    (root / "classes.txt").unlink()
    write("train/zoo/a.jpg 0\ntrain/zoo/d.jpg 1\n", "val/f.jpg 1\n")
    assert make(root).class_names == ("class 0", "class 1")


def test_it_pickles_and_its_repr_has_no_path(write):
    root = write()
    source = make(root)
    assert repr(pickle.loads(pickle.dumps(source))) == repr(source)
    assert str(root) not in repr(source)
    assert repr(source) != repr(make(root, "val"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train/zoo/a.jpg 0\ntrain/zoo/d.jpg\n",
            r"Places_LT_train.txt line 2: 'train/zoo/d.jpg' is not a path, a blank and",
        ),
        ("train/zoo/a.jpg zoo\n", "line 1: 'train/zoo/a.jpg zoo' is not a path"),
        ("train/zoo/a.jpg -1\n", "line 1: 'train/zoo/a.jpg -1' is not a path"),
        ("train/zoo/a.jpg 1.0\n", "line 1: 'train/zoo/a.jpg 1.0' is not a path"),
        ("/train/a.jpg 0\n", r"line 1: path '/train/a.jpg'; write a path relative to"),
        (
            "train/zoo/a.jpg 0\ntrain/bar/e.jpg 1\ntrain/./zoo/a.jpg 0\n",
            r"line 3: 'train/./zoo/a.jpg' is already in line 1",
        ),
        (
            "train/zoo/a.jpg 0\n\ntrain/bar/e.jpg 3\n",
            r"label 1 has no image, though line 3 has label 3 \(2 such labels\); number the classes without gaps",
        ),
        (
            "train/zoo/a.jpg 0\ntrain/zoo/x.jpg 0\nnowhere/y.jpg 0\n",
            r"line 2: no image 'train/zoo/x.jpg' in .* \(and 1 more\); unpack the images there",
        ),
        (
            "train/zoo/a.jpg 0\ntrain/bar/e.jpg 999999999\n",
            r"label 1 has no image, though line 2 has label 999999999",
        ),
        ("train/zoo/a.jpg 9999999999\n", "line 1: 'train/zoo/a.jpg 9999999999' is not a path"),
        ("../a.jpg 0\n", r"line 1: path '../a.jpg'; write a path relative to .* and inside it"),
        ("\n\n", "Places_LT_train.txt: no image in it"),
    ],
)
def test_an_invalid_list_is_named_with_its_place(write, text, message):
    with pytest.raises(InputError, match=message) as error:
        make(write(text))
    assert "\n" not in str(error.value)


def test_a_label_missing_in_training_is_refused(write):
    root = write(val="val/f.jpg 2\nval/g.jpg 3\n")
    with pytest.raises(InputError, match=r"Places_LT_val.txt line 2: label 3, but .* has the classes 0 to 2"):
        make(root, "val")


def test_a_missing_list(write):
    with pytest.raises(InputError, match=r"Places_LT_test.txt: No such file.*; lists of `path label`"):
        make(write(), "test")


def test_an_unknown_split_is_refused(write):
    with pytest.raises(InputError, match="split 'trian' does not exist; use one of train, val, test"):
        make(write(), "trian")


def test_class_names_of_the_wrong_number_are_refused(write):
    root = write()
    (root / "classes.txt").write_text("zoo\nbar\n")
    with pytest.raises(InputError, match=r"classes.txt: 2 different names in 2 lines, wanted 3 classes"):
        make(root)
    (root / "classes.txt").write_text("zoo\nbar\nzoo\n")
    with pytest.raises(InputError, match=r"classes.txt: 2 different names in 3 lines, wanted 3 classes"):
        make(root)


def test_paths_and_names_have_one_spelling(write):
    root = write(".\\train\\zoo\\a.jpg\t0\ntrain//bar/e.jpg  1\n", "val/f.jpg 0\n")
    (root / "classes.txt").write_text("cafe\u0301\nbar\n", encoding="utf-8")
    source = make(root)
    assert source.ids == ["train/zoo/a.jpg", "train/bar/e.jpg"]
    assert source.class_names == ("caf\u00e9", "bar")
    assert source[0]["image"] == b"train/zoo/a.jpg"
