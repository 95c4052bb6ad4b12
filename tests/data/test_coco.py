import io
import json
import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.data.sources import coco
from cfmlc_jax.data.sources.checks import summary
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.errors import InputError

# Ids with a gap, and not in alphabetical order, as in the official file.
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 2, "name": "bicycle"}]


def file_name(number, split="train"):
    return f"COCO_{split}2014_{number:012d}.jpg"


def annotation(image, category, box=(1, 2, 3, 4), **more):
    return {"image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0, **more}


@pytest.fixture
def document():
    return {
        "info": {"year": 2014},
        "images": [{"id": number, "file_name": file_name(number)} for number in (9, 100, 25, 7)],
        "annotations": [
            annotation(9, 18, (10.5, 20, 30, 40)),
            annotation(100, 1, iscrowd=1),
            annotation(9, 2),
            annotation(25, 1),
            annotation(9, 18),
        ],
        "categories": CATEGORIES,
    }


@pytest.fixture
def write(tmp_path):
    """Writes the official layout; image 7 is there but has no annotation."""

    def write(document, split="train", images=(7, 9, 25, 100)):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(document))
        folder = tmp_path / f"{split}2014"
        folder.mkdir(exist_ok=True)
        for number in images:
            Image.new("RGB", (64, 48), (number, 0, 0)).save(folder / file_name(number, split))
        return tmp_path

    return write


def test_labels_follow_the_files_categories_and_ids_sort_as_strings(write, document):
    source = Coco(write(document), "train")
    assert source.class_names == ("person", "dog", "bicycle")
    assert source.ids == ["100", "25", "9"]
    assert source.labels.dtype == np.uint8
    np.testing.assert_array_equal(source.labels, [[1, 0, 0], [1, 0, 0], [0, 1, 1]])


def test_a_record_has_the_files_bytes_and_boxes_as_corners(write, document):
    root = write(document)
    record = Coco(root, "train")[2]
    assert record["image"] == (root / "train2014" / file_name(9)).read_bytes()
    assert Image.open(io.BytesIO(record["image"])).size == (64, 48)
    assert record["where"] == str(root / "train2014" / file_name(9))
    corners, classes = Coco(root, "train").boxes().of_image(2)
    np.testing.assert_array_equal(corners, [[10.5, 20, 40.5, 60], [1, 2, 4, 6], [1, 2, 4, 6]])
    np.testing.assert_array_equal(classes, [1, 2, 1])
    assert (corners.dtype, classes.dtype) == (np.float32, np.int32)


def test_bytes_are_read_late_and_a_lost_file_is_named(write, document):
    root = write(document)
    source = Coco(root, "train")
    (root / "train2014" / file_name(25)).unlink()
    assert source[0]["id"] == "100"
    with pytest.raises(InputError, match=r"000000000025\.jpg: cannot read the image"):
        source[1]


def test_pickles_small_and_repr_is_the_same_elsewhere(write, document, tmp_path):
    source = Coco(write(document), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert repr(copy) == repr(source)
    assert copy[0]["image"] == source[0]["image"]
    assert str(tmp_path) not in repr(source)
    assert len(pickle.dumps(source)) < 5000


def test_repr_tells_other_annotations_of_the_same_size(write, document):
    before = repr(Coco(write(document), "train"))
    document["annotations"][3]["category_id"] = 2
    assert repr(Coco(write(document), "train")) != before


def test_a_record_cannot_change_the_sources_labels(write, document):
    source = Coco(write(document), "train")
    source[0]["labels"][:] = 7
    assert source.labels.max() == 1


def test_val_is_read_from_its_own_files(write, document):
    document["images"] = [{"id": 3, "file_name": file_name(3, "val")}]
    document["annotations"] = [annotation(3, 1)]
    source = Coco(write(document, "val", [3]), "val")
    assert source.ids == ["3"]
    assert source[0]["where"].endswith("val2014/COCO_val2014_000000000003.jpg")


def test_the_folder_is_listed_once(write, document, monkeypatch):
    root = write(document)
    listed = []
    scandir = coco.files.os.scandir
    monkeypatch.setattr(coco.files.os, "scandir", lambda path: listed.append(path) or scandir(path))
    Coco(root, "train")
    assert listed == [root / "train2014"]


def test_missing_images_are_counted_and_named(write, document):
    with pytest.raises(
        InputError,
        match=r"2 of 3 files are missing, first train2014/COCO_train2014_000000000025.*train2014\.zip",
    ):
        Coco(write(document, images=[7, 9]), "train")


def test_invalid_json_is_named_with_its_place(write, document, tmp_path):
    write(document)
    path = tmp_path / "annotations" / "instances_train2014.json"
    path.write_text('{"images": [],\n "annotations": [}')
    with pytest.raises(InputError, match=r"instances_train2014\.json line 2 column 18: broken JSON"):
        Coco(tmp_path, "train")


def change(document, **entries):
    return {**document, **entries}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"info": {"year": 2017}}, "annotations of 2017, wanted 2014"),
        (
            {"images": [{"id": 9, "file_name": "000000000009.jpg"}]},
            "000000000009.jpg belongs to 2017, wanted train2014",
        ),
        ({"images": [{"id": 9, "file_name": file_name(9, "val")}]}, "belongs to val2014, wanted train2014"),
        ({"images": [{"id": 9}]}, "entry 0 of 'images' has no 'file_name'"),
        ({"images": None}, "no list 'images'"),
        ({"annotations": [annotation(9, 99)]}, "annotation 0 has the unknown category id 99"),
        ({"annotations": [annotation(9, 1), annotation(8, 1)]}, "annotation 1 has the unknown image id 8"),
        ({"annotations": []}, "no image has an annotation"),
        (
            {"categories": [*CATEGORIES, {"id": 1.0, "name": "cat"}]},
            "the id 1 or the name 'cat' occurs twice",
        ),
        ({"categories": [{"id": 1, "name": "caf\u00e9"}, {"id": 2, "name": "cafe\u0301"}]}, "occurs twice"),
        (
            {"categories": [{"id": 1, "name": None}]},
            "entry 0 of 'categories': class name None; give every class",
        ),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, r"entry 0 of 'categories': class name 'a\\nb'"),
        ({"categories": [{"id": 1}]}, "entry 0 of 'categories' has no 'name'"),
        (
            {"categories": [{"id": [1], "name": "dog"}]},
            r"entry 0 of 'categories' has the id \[1\]; write a whole",
        ),
        ({"categories": ["dog"]}, "entry 0 of 'categories' is 'dog', not an object"),
        ({"categories": {"1": "dog"}}, "no list 'categories'"),
        ({"images": [{"id": True, "file_name": "a.jpg"}]}, "entry 0 of 'images' has the id True"),
        ({"images": [{"id": 1.5, "file_name": "a.jpg"}]}, "entry 0 of 'images' has the id 1.5"),
        (
            {"images": [{"id": 9, "file_name": 5}]},
            "entry 0 of 'images': path 5; write a path relative to the folder",
        ),
        ({"images": [{"id": 9, "file_name": "/data/a.jpg"}]}, "entry 0 of 'images': path '/data/a.jpg'"),
        ({"images": [{"id": 9, "file_name": "C:\\a.jpg"}]}, r"entry 0 of 'images': path 'C:\\\\a.jpg'"),
        (
            {"images": [{"id": 9, "file_name": "../../a.jpg"}]},
            r"entry 0 of 'images': path '../../a.jpg'.*inside it",
        ),
        (
            {"images": [{"id": 9, "file_name": "a.jpg"}, {"id": "9", "file_name": "sub/b.jpg"}]},
            "entry 1 of 'images' gives train2014/sub/b.jpg the id 9, which train2014/a.jpg has already",
        ),
        (
            {
                "images": [
                    {"id": key, "file_name": name}
                    for key, name in ((9, "a.jpg"), (100, "x/../a.jpg"), (25, "b.jpg"))
                ]
            },
            "the images 100 and 9 are the same file, train2014/a.jpg",
        ),
        ({"annotations": [{"image_id": 9}]}, "annotation 0 has no 'category_id'"),
        ({"annotations": [annotation(None, 1)]}, "annotation 0 has the image_id None"),
        ({"annotations": [7]}, "entry 0 of 'annotations' is 7, not an object"),
    ],
)
def test_other_files_are_refused(write, document, entries, message):
    with pytest.raises(InputError, match=message) as caught:
        Coco(write(change(document, **entries)), "train")
    assert "\n" not in str(caught.value)
    assert "instances_train2014.json" in str(caught.value)


def test_images_of_another_year_are_recognised(write, document, tmp_path):
    write(document, images=[])
    (tmp_path / "train2014" / "000000000009.jpg").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"none of the images, but 000000000009.jpg \(of 2017\); wanted COCO_train2014_"
    ):
        Coco(tmp_path, "train")


def test_annotations_of_another_year_alone(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text("{}")
    with pytest.raises(InputError, match="contains COCO 2017, wanted 2014"):
        Coco(tmp_path, "train")


def test_an_empty_folder_is_explained(tmp_path):
    with pytest.raises(InputError, match=r"instances_val2014\.json: No such file.*get train2014\.zip"):
        Coco(tmp_path, "val")


def test_unknown_split(tmp_path):
    with pytest.raises(InputError, match="split 'test' does not exist; use 'train' or 'val'"):
        Coco(tmp_path, "test")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([30, 20, -10, -5], "has a negative side"),
        ([1, 2, 3], "is not 4 numbers"),
        ([1, 2, 3, float("nan")], "is not 4 numbers"),
        ([1, 2, 3, "4"], "is not 4 numbers"),
        ([1, 2, 3, True], "is not 4 numbers"),
        ({"x": 1}, "is not 4 numbers"),
        ("1 2 3 4", "is not 4 numbers"),
        ([1, 2, 3, 10**400], "is outside any image"),
        ([1, 2, 1e39, 4], "is outside any image"),
        ([70, 2, 3, 4], "is outside its image of 64 x 48"),
        ([-9, 2, 3, 4], "is outside its image of 64 x 48"),
    ],
)
def test_an_invalid_box_is_left_out_and_reported(write, document, box, reason):
    document["annotations"][2:4] = [
        {"id": 77, "image_id": 9, "category_id": 2, "bbox": box},
        {"image_id": 25, "category_id": 1, "bbox": box},
    ]
    for image in document["images"]:
        image |= {"width": 64, "height": 48}
    source = Coco(write(document), "train")
    assert source.labels.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    boxes = source.boxes()
    assert boxes.of_image(2)[1].tolist() == [1, 1]
    assert boxes.of_image(1)[0].shape == (0, 4)
    assert boxes.sizes.tolist() == [[64, 48]] * 3
    assert boxes.left_out == source.left_out
    assert source.left_out.startswith("boxes left out of localisation: 2, first ")
    assert source.left_out.count("\n") == 0
    assert "instances_train2014.json: annotation 2 (id 77): the box " in source.left_out
    assert source.left_out.endswith(reason)
    assert f"  {source.left_out}" in summary("train", source).splitlines()


def test_boxes_at_the_border_and_empty_ones_are_no_mistake(write, document):
    document["annotations"] = [
        annotation(9, 1, box) for box in ((-5, -5, 6, 6), (60, 40, 10, 10), (3, 3, 0, 0))
    ]
    document["images"][0] |= {"width": 64, "height": 48}
    source = Coco(write(document), "train")
    assert len(source.boxes().of_image(0)[0]) == 3
    assert source.left_out == ""


@pytest.mark.parametrize("box", [None, [], "absent"])
def test_labels_are_all_that_is_needed(write, document, box):
    for row in document["annotations"]:
        row["image_id"], row["category_id"] = str(row["image_id"]), float(row["category_id"])
        row["bbox"] = box
        if box == "absent":
            del row["bbox"]
    source = Coco(write(document), "train")
    assert source.labels.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert not len(source.boxes().images)
    assert source.left_out == ""


def test_a_name_may_be_a_number_and_has_one_spelling(write, document):
    document["categories"] = [
        {"id": 1, "name": 7},
        {"id": 18, "name": "cafe\u0301"},
        {"id": 2, "name": " dog "},
    ]
    assert Coco(write(document), "train").class_names == ("7", "caf\u00e9", "dog")


def test_an_entry_that_is_repeated_counts_once(write, document):
    document["images"].append(dict(document["images"][0]))
    assert len(Coco(write(document), "train")) == 3


@pytest.mark.parametrize(
    "written",
    [
        "sub/caf\u00e9.jpg",
        "./sub/caf\u00e9.jpg",
        "sub\\caf\u00e9.jpg",
        "x/../sub//cafe\u0301.jpg",
        "../images/caf\u00e9.jpg",
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_paths_are_found_however_they_are_written(write, document, written, form):
    root = write(document)
    folder = root / "images" if "images" in written else root / "train2014" / "sub"
    folder.mkdir()
    (folder / unicodedata.normalize(form, "caf\u00e9.jpg")).write_bytes(b"here")
    document["images"][0]["file_name"] = written
    source = Coco(write(document), "train")
    assert source[2]["image"] == b"here"


def test_a_folder_may_be_decomposed_on_disk(write, document):
    root = write(document)
    (root / "train2014" / "e\u0301te\u0301").mkdir()
    (root / "train2014" / "e\u0301te\u0301" / "a.jpg").write_bytes(b"here")
    document["images"][0]["file_name"] = "\u00e9t\u00e9/a.jpg"
    assert Coco(write(document), "train")[2]["image"] == b"here"


def test_of_two_files_the_one_that_is_spelled_so(write, document):
    root = write(document)
    for name in ("caf\u00e9.jpg", "cafe\u0301.jpg"):
        (root / "train2014" / name).write_bytes(name.encode())
    document["images"][0]["file_name"] = "caf\u00e9.jpg"
    assert Coco(write(document), "train")[2]["image"] == "caf\u00e9.jpg".encode()
