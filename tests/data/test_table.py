import pickle

import numpy as np
import pytest

from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.errors import InputError

TRAIN = "file,labels\na.jpg,dog;cat\nsub/b.jpg,\n\nsub/c.jpg, dog ; bird\n"


@pytest.fixture
def write(tmp_path):
    """Writes tables, class list and the images a.jpg, sub/b.jpg, sub/c.jpg."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg", "sub/c.jpg"):
        (tmp_path / name).write_bytes(name.encode())

    def write(train=TRAIN, **others):
        (tmp_path / "train.csv").write_text(train, encoding="utf-8")
        for stem, text in others.items():
            (tmp_path / f"{stem}.{'txt' if stem == 'classes' else 'csv'}").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_lines_become_records_in_their_order(write):
    root = write()
    source = Table(root, "train")
    assert source.class_names == ("bird", "cat", "dog")
    assert source.ids == ["a.jpg", "sub/b.jpg", "sub/c.jpg"]
    np.testing.assert_array_equal(source.labels, [[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    assert source.labels.dtype == np.uint8
    assert source[2]["image"] == b"sub/c.jpg"
    assert source[2]["where"] == str(root / "sub/c.jpg")
    assert source.boxes() is None


@pytest.mark.parametrize("header", ["", "file,label\n", "File,Labels\r\n", "\ufefffile,labels\n", "\ufeff"])
def test_header_and_byte_order_mark_are_optional(write, header):
    assert Table(write(f"{header}a.jpg,dog\n"), "train").ids == ["a.jpg"]


def test_quoted_fields(write):
    root = write('"a, b.jpg","fire hydrant;stop sign"\n')
    (root / "a, b.jpg").write_bytes(b"x")
    source = Table(root, "train")
    assert source.ids == ["a, b.jpg"]
    assert source.class_names == ("fire hydrant", "stop sign")


def test_val_has_the_classes_of_train(write):
    source = Table(write(val="a.jpg,cat\n"), "val")
    assert source.class_names == ("bird", "cat", "dog")
    np.testing.assert_array_equal(source.labels, [[0, 1, 0]])


def test_a_class_list_gives_the_order_and_may_have_more(write):
    source = Table(write(classes="dog\nzebra\n\ncat\nbird \n"), "train")
    assert source.class_names == ("dog", "zebra", "cat", "bird")
    np.testing.assert_array_equal(source.labels[0], [1, 0, 1, 0])


def test_given_classes_come_first(write):
    source = Table(write(classes="dog\n"), "train", classes=["cat", "bird", "dog"])
    assert source.class_names == ("cat", "bird", "dog")


def test_it_pickles_and_its_repr_has_no_path(write, tmp_path):
    source = Table(write(), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    assert str(tmp_path) not in repr(source)
    assert copy[0]["image"] == b"a.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a.jpg,dog\nsub/b.jpg;cat\n",
            r"train\.csv line 2: 'sub/b\.jpg;cat' has no label field; put a comma after",
        ),
        ("a.jpg,dog\n..\\b.jpg,dog\n", r"train\.csv line 2: path '\.\.\\\\b\.jpg'; .* and inside it"),
        ("a.jpg,dog\nc:/b.jpg,dog\n", r"train\.csv line 2: path 'c:/b\.jpg'"),
        ("a.jpg,dog\nsub\\b.jpg,cat\nsub/b.jpg,dog\n", r"line 3: 'sub/b\.jpg' is already in line 2"),
        ("a.jpg,do\x00g\n", r"train\.csv line 1: class name 'do\\x00g'"),
        (
            "a.jpg,dog\nsub/b.jpg\n",
            r"train\.csv line 2: 'sub/b\.jpg' has no label field; end the line with a comma",
        ),
        ("a.jpg,dog,cat\n", r"train\.csv line 1: 3 fields, wanted 2; separate labels by ';'"),
        ("file,labels\n\na.jpg,dog;;cat\n", r"train\.csv line 3: an empty label in 'dog;;cat'"),
        (
            "a.jpg,dog\n/b.jpg,dog\n",
            r"train\.csv line 2: path '/b\.jpg'; write a path relative to the folder",
        ),
        (",dog\n", r"train\.csv line 1: path ''"),
        ('a.jpg,dog\n"b.jpg,dog\n', r"train\.csv line 2: broken CSV \(unexpected end of data\)"),
        (
            "a.jpg,dog\nsub/b.jpg,cat\nsub/../a.jpg,dog\n",
            r"train\.csv line 3: 'sub/\.\./a\.jpg' is already in line 1",
        ),
        (
            "a.jpg,dog\nx.jpg,dog\nsub/y.jpg,\n",
            r"train\.csv line 2: no image 'x\.jpg' in .* \(and 1 more\); add the file",
        ),
        ("nowhere/a.jpg,dog\n", r"train\.csv line 1: no image 'nowhere/a\.jpg'"),
        ("sub,dog\n", r"train\.csv line 1: no image 'sub'"),
        ("file,labels\n", r"train\.csv: no image in it; write one line per image"),
        ("a.jpg,\n", r"train\.csv in .*: no classes"),
    ],
)
def test_an_invalid_table_is_named_with_its_place(write, text, message):
    with pytest.raises(InputError, match=message) as caught:
        Table(write(text), "train")
    assert "\n" not in str(caught.value)


def test_an_unknown_label_is_named_with_its_place_and_the_nearest_class(write):
    root = write("a.jpg,elephant\n", val="a.jpg,elephant\nsub/b.jpg,elefant\n")
    with pytest.raises(
        InputError, match=r"val\.csv line 2: label 'elefant' is not in train\.csv; did you mean 'elephant'"
    ):
        Table(root, "val")


def test_an_unknown_label_unlike_any_class(write):
    with pytest.raises(
        InputError, match=r"line 2: label 'dog' is not in classes\.txt; add it to the classes"
    ):
        Table(write(classes="zeppelin\n"), "train")


def test_a_class_listed_twice(write):
    with pytest.raises(InputError, match=r"classes\.txt in .*: class 'dog' is listed twice"):
        Table(write(classes="dog\ncat\ndog\n"), "train")


def test_text_that_is_not_utf8_is_placed(write):
    root = write()
    (root / "train.csv").write_bytes(b"a.jpg,dog\nsub/b.jpg,K\xe4fer\n")
    with pytest.raises(InputError, match=r"train\.csv line 2: not UTF-8 text"):
        Table(root, "train")


def test_a_missing_table(tmp_path):
    with pytest.raises(
        InputError, match=r"val\.csv: No such file.*; write one line per image: file,label;label"
    ):
        Table(tmp_path, "val")


@pytest.mark.parametrize(
    "text",
    [
        "file;labels\na.jpg;dog;cat\nsub/b.jpg;;\nsub/c.jpg;dog;bird\n",
        'a.jpg;"dog;cat"\r\nsub/b.jpg;\r\nsub/c.jpg;"dog; bird"\r\n',
        "\ufefffile\tlabels\na.jpg\tdog;cat\nsub/b.jpg\t\nsub/c.jpg\tdog\tbird\n",
    ],
)
def test_tables_of_spreadsheets_that_separate_by_semicolon_or_tab(write, text):
    source = Table(write(text), "train")
    assert source.class_names == ("bird", "cat", "dog")
    assert source.ids == ["a.jpg", "sub/b.jpg", "sub/c.jpg"]
    np.testing.assert_array_equal(source.labels, [[0, 1, 1], [0, 0, 0], [1, 0, 1]])


def test_commas_take_precedence_over_other_separators(write):
    root = write("a;b.jpg,dog;cat\n", val="a, b.jpg;dog\nsub/b.jpg;\n")
    for name in ("a;b.jpg", "a, b.jpg"):
        (root / name).write_bytes(b"x")
    assert Table(root, "train").class_names == ("cat", "dog")
    assert Table(root, "val").ids == ["a, b.jpg", "sub/b.jpg"]


def test_a_path_and_a_name_have_one_spelling(write):
    root = write(
        "./sub\\b.jpg,cafe\u0301\nsub//c.jpg,caf\u00e9\n", classes="cafe\u0301\n", val="a.jpg,caf\u00e9\n"
    )
    train, val = Table(root, "train"), Table(root, "val")
    assert train.ids == ["sub/b.jpg", "sub/c.jpg"]
    assert train.class_names == val.class_names == ("caf\u00e9",)
    assert train.labels.tolist() == [[1], [1]]


def test_a_class_list_in_two_spellings(write):
    with pytest.raises(InputError, match="class 'caf\u00e9' is listed twice"):
        Table(write(classes="caf\u00e9\ncafe\u0301\n"), "train")
