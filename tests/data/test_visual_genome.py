import json
import pickle

import numpy as np
import pytest

from cfmlc_jax.data.sources.visual_genome import (
    ADJECTIVES,
    VisualGenome,
    object_name,
    read_vocabulary,
    split_rows,
)
from cfmlc_jax.errors import InputError

VOCABULARY = {
    "zebra": ["zebra", "zebras"],
    "grass": ["grass", "grass field"],
    "field": ["field", "grass field"],
}


def thing(name, x=1, y=2, w=3, h=4, **more):
    return {"object_id": 5, "names": [name, "second name"], "x": x, "y": y, "w": w, "h": h, **more}


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(VOCABULARY))
    return path


@pytest.fixture
def write(tmp_path):
    """Writes objects.json and the images: even numbers in VG_100K, odd ones in VG_100K_2."""

    def write(objects_of):
        document = [{"image_id": number, "objects": objects} for number, objects in objects_of.items()]
        (tmp_path / "objects.json").write_text(json.dumps(document))
        for number in objects_of:
            folder = tmp_path / ("VG_100K_2" if number % 2 else "VG_100K")
            folder.mkdir(exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(b"%d" % number)
        return tmp_path

    return write


@pytest.fixture
def ten(write):
    """Ten images with a class, listed from the highest number down, and one without (4)."""
    objects = {number: [thing("Zebra.")] for number in (20, 13, 12, 10, 9, 7, 5, 3, 2)}
    objects[4] = [thing("unicorn")]
    objects[1] = [thing("sky"), thing("grass field", -1, 0, 10, 20), thing("zebras", 5, 6, 7, 8)]
    return write(objects)


@pytest.mark.parametrize(
    ("annotated", "name"),
    [
        ("Zebra", "zebra"),
        (" zebra. ", "zebra"),
        ("zebra .", "zebra"),
        ("zebra..", "zebra."),
        ("Small Brown dog", "dog"),
        ("hot dog", "hot dog"),
        ("small hot dog", "small hot dog"),
        ("brown", "brown"),
        ("metal", "metal"),
        ("brown  dog", "dog"),
        ("hot  dog", "hot  dog"),
        (".", ""),
        ("", ""),
    ],
)
def test_object_names(annotated, name):
    assert object_name(annotated) == name


def test_nineteen_adjectives():
    assert len(ADJECTIVES) == 19
    assert {"white", "wooden", "tall", "gray", "grey"} <= ADJECTIVES


def test_vocabulary_keeps_the_files_order_and_the_later_of_two_categories(vocabulary):
    names, class_of = read_vocabulary(vocabulary)
    assert names == ("zebra", "grass", "field")
    assert class_of == {"zebra": 0, "zebras": 0, "grass": 1, "grass field": 2, "field": 2}


def test_split_is_the_permutation_of_random_state_one():
    # np.random.RandomState(1).permutation(10) is [2 9 6 4 0 3 1 7 8 5].
    assert split_rows(10, "train").tolist() == [0, 1, 2, 3, 4, 6, 9]
    assert split_rows(10, "val").tolist() == [5, 7, 8]
    assert len(split_rows(5, "val")) == 2  # 1.5 rounds to even, as in the reference
    assert len(split_rows(15, "val")) == 4  # 4.5 too


def test_images_without_a_class_are_dropped_and_the_rest_is_sorted_by_number_before_the_split(
    ten, vocabulary
):
    numbers = ["1", "2", "3", "5", "7", "9", "10", "12", "13", "20"]
    train, val = (VisualGenome(ten, split, vocabulary) for split in ("train", "val"))
    assert train.ids == [numbers[row] for row in (0, 1, 2, 3, 4, 6, 9)]
    assert val.ids == [numbers[row] for row in (5, 7, 8)]


def test_a_record_has_labels_boxes_and_the_bytes_from_either_folder(ten, vocabulary):
    source = VisualGenome(ten, "train", vocabulary)
    record = source[0]
    np.testing.assert_array_equal(record["labels"], [1, 0, 1])
    corners, classes = source.boxes().of_image(0)
    np.testing.assert_array_equal(corners, [[-1, 0, 9, 20], [5, 6, 12, 14]])
    np.testing.assert_array_equal(classes, [2, 0])
    assert not source.boxes().sizes.any()  # the file does not have them
    assert record["image"] == b"1"
    assert record["where"] == str(ten / "VG_100K_2" / "1.jpg")
    assert source[1]["where"] == str(ten / "VG_100K" / "2.jpg")
    np.testing.assert_array_equal(source.boxes().of_image(1)[0], [[1, 2, 4, 6]])


def test_all_images_may_be_in_one_folder(ten, vocabulary):
    for path in (ten / "VG_100K_2").iterdir():
        path.rename(ten / "VG_100K" / path.name)
    (ten / "VG_100K_2").rmdir()
    assert VisualGenome(ten, "train", vocabulary)[0]["image"] == b"1"


def test_it_pickles_and_its_repr_has_no_path(ten, vocabulary, tmp_path):
    source = VisualGenome(ten, "val", vocabulary)
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    assert str(tmp_path) not in repr(source)
    assert copy[1]["id"] == "12"


def test_missing_images(ten, vocabulary):
    (ten / "VG_100K" / "2.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 7 files are missing, first 2\.jpg; get images\.zip"):
        VisualGenome(ten, "train", vocabulary)


def test_no_image_folder(ten, vocabulary):
    for folder in ("VG_100K", "VG_100K_2"):
        (ten / folder).rename(ten / f"moved_{folder}")
    with pytest.raises(InputError, match="neither VG_100K nor VG_100K_2"):
        VisualGenome(ten, "train", vocabulary)


def test_too_few_images_to_split(write, vocabulary):
    with pytest.raises(InputError, match="1 images have a category, too few for a val split"):
        VisualGenome(write({1: [thing("zebra")]}), "val", vocabulary)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (7, "not a list of images"),
        ([{"objects": []}], "image 0 of the list has no usable 'image_id'"),
        ([3], "image 0 of the list is not an object"),
        ([{"image_id": 3}], "image 0 of the list has no usable 'objects'"),
        ([{"image_id": 3, "objects": 5}], "image 0 of the list has no usable 'objects'"),
        ([{"image_id": 3, "objects": [5]}], "image 0 of the list has no usable 'objects'"),
        ([{"image_id": 3.5, "objects": []}], "image 0 of the list has no usable 'image_id'"),
        ([{"image_id": True, "objects": []}], "image 0 of the list has no usable 'image_id'"),
        (
            [{"image_id": 3, "objects": []}, {"image_id": "3", "objects": [thing("zebra")]}],
            "image 3 is listed twice, with other objects",
        ),
        ([{"image_id": 3, "objects": [thing("zebra", names=[])]}], "object 5 has no usable name"),
        ([{"image_id": 3, "objects": [thing("zebra", names="zebra")]}], "object 5 has no usable name"),
        ([{"image_id": 3, "objects": [thing("zebra", names=[7])]}], "object 5 has no usable name"),
    ],
)
def test_other_documents_are_refused(tmp_path, vocabulary, document, message):
    (tmp_path / "objects.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"objects\.json: {message}"):
        VisualGenome(tmp_path, "train", vocabulary)


@pytest.mark.parametrize("box", [{"x": "left"}, {"w": -1}, {"h": None}, {"y": float("nan")}, {"x": 10**400}])
def test_an_invalid_box_is_left_out_and_reported(write, vocabulary, box):
    objects = {number: [thing("zebra")] for number in range(9)}
    objects[8] = [thing("zebra", **box), thing("grass")]
    source = VisualGenome(write(objects), "train", vocabulary)
    last = source[source.ids.index("8")]
    assert last["labels"].tolist() == [1, 1, 0]
    assert source.boxes().of_image(source.ids.index("8"))[1].tolist() == [1]
    assert source.left_out.startswith("boxes left out of localisation: 1, first ")
    assert "objects.json: object 5: the box (" in source.left_out
    assert VisualGenome(write(objects), "val", vocabulary).left_out == ""


def test_ids_of_other_types_and_repeated_images(write, vocabulary, tmp_path):
    root = write({number: [thing("zebra")] for number in range(9)})
    document = json.loads((root / "objects.json").read_text())
    document[1]["image_id"], document[2]["image_id"] = "1", 2.0
    (root / "objects.json").write_text(json.dumps([*document, document[1]]))
    assert len(VisualGenome(root, "train", vocabulary)) == 6


def test_accents_in_names_are_composed(write, vocabulary):
    vocabulary.write_text(json.dumps({"cafe\u0301": ["cafe\u0301"]}))
    source = VisualGenome(write({number: [thing("Caf\u00e9")] for number in range(3)}), "train", vocabulary)
    assert source.class_names == ("caf\u00e9",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zebra": [], "zebra": []}', "class 'zebra' is listed twice"),
        ('{"caf\\u00e9": [], "cafe\\u0301": []}', "class 'caf\u00e9' is listed twice"),
        ('{" ": []}', "class name ' '; give every class a name"),
        ('{"zebra": [null]}', r"category 'zebra' has \[None\]; write a list"),
        ('{"zebra": {}}', r"category 'zebra' has \(\); write a list"),
        ("[" * 100_000, "not readable as JSON"),
        ("1" * 5000, "not readable as JSON"),
        ('{"zebra": "zebras"}', "category 'zebra' has 'zebras'; write a list"),
        ("[]", "not a JSON object"),
        ('{"zebra":\n', "line 2 column 1: broken JSON"),
    ],
)
def test_a_bad_vocabulary_is_refused(vocabulary, text, message):
    vocabulary.write_text(text)
    with pytest.raises(InputError, match=message):
        read_vocabulary(vocabulary)
