"""Layouts of COCO 2017, of any instances.json, of Open Images and of NUS-WIDE, in small files of the official form."""

import json

import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.data import build, sizes
from cfmlc_jax.data.sources import annotations, checks
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.instances import Instances
from cfmlc_jax.data.sources.nus_wide import NusWide
from cfmlc_jax.data.sources.open_images import OpenImages
from cfmlc_jax.errors import InputError


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def document(names, annotated, year=None):
    """An instances file of images {id: name}, whose first class is that of the annotated ids."""
    info = {} if year is None else {"info": {"year": year}}
    return json.dumps(
        info
        | {
            "images": [
                {"id": key, "file_name": name, "width": 8, "height": 8} for key, name in names.items()
            ],
            "annotations": [
                {"id": n, "image_id": key, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}
                for n, key in enumerate(annotated)
            ],
            "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}],
        }
    )


# COCO


def plain(number):
    return f"{number:012d}.jpg"


def official(split, number):
    return f"COCO_{split}2014_{plain(number)}"


@pytest.fixture
def coco2017(tmp_path):
    for split, numbers in (("train", (9, 42)), ("val", (25,))):
        names = {number: plain(number) for number in numbers}
        write(tmp_path / "annotations" / f"instances_{split}2017.json", document(names, numbers, 2017))
        for name in names.values():
            write(tmp_path / f"{split}2017" / name, f"picture {name}")
    return tmp_path


def test_coco_2017(coco2017):
    train, val = (Coco(coco2017, split, year="2017") for split in ("train", "val"))
    assert (train.ids, val.ids) == (["42", "9"], ["25"])
    assert train[0]["image"] == b"picture 000000000042.jpg"
    np.testing.assert_array_equal(train.boxes().of_image(0)[0], [[1, 2, 4, 6]])


def test_the_2014_split_of_the_pictures_of_2017(coco2017):
    # In 2014, image 42 was in val, and 25 in train.
    for split, numbers in (("train", (9, 25)), ("val", (42,))):
        names = {number: official(split, number) for number in numbers}
        write(coco2017 / "annotations" / f"instances_{split}2014.json", document(names, numbers, 2014))
    train, val = (Coco(coco2017, split) for split in ("train", "val"))
    assert (train.ids, val.ids) == (["25", "9"], ["42"])
    assert train[0]["where"] == str(coco2017 / "val2017" / plain(25))
    assert val[0]["image"] == b"picture 000000000042.jpg"

    (coco2017 / "val2017" / plain(25)).unlink()
    with pytest.raises(
        InputError, match=r"1 of 2 files are missing, first 000000000025.jpg; get train2017.zip and val"
    ):
        Coco(coco2017, "train")


@pytest.mark.parametrize(
    ("year", "message"),
    [(2014, "annotations of 2014, wanted 2017; get train2017.zip"), (None, "belongs to val2014")],
)
def test_annotations_of_2014_are_no_annotations_of_2017(coco2017, year, message):
    write(coco2017 / "annotations" / "instances_train2017.json", document({9: official("val", 9)}, [9], year))
    with pytest.raises(InputError, match=message):
        Coco(coco2017, "train", year="2017")


# Any instances.json


@pytest.fixture
def own(tmp_path):
    names = {1: "a.png", 2: "sub/b.png", 3: "c.png"}
    write(tmp_path / "all.json", document(names, [1, 3, 3]))
    for name in names.values():
        write(tmp_path / "photos" / name, name)
    write(tmp_path / "train.txt", "1\nsub/b.png\n\n")
    write(tmp_path / "val.txt", "c.png\n")
    return tmp_path


def test_one_annotation_file_and_two_lists(own):
    train, val = (
        Instances(own, split, json="all.json", images="photos", listed=f"{split}.txt")
        for split in ("train", "val")
    )
    assert (train.ids, val.ids) == (["1", "2"], ["3"])
    # The second image has no annotation, and is kept.
    np.testing.assert_array_equal(train.labels, [[1, 0], [0, 0]])
    assert (len(train.boxes().images), len(val.boxes().images)) == (1, 2)
    assert train[1]["image"] == b"sub/b.png"
    checks.require_disjoint(train, val)


def test_the_cache_knows_the_folder_of_the_images(own, monkeypatch):
    monkeypatch.setenv("CFMLC_CACHE", str(own / "cache"))
    monkeypatch.setattr(annotations, "SMALLEST", 0)
    before = "photos"
    for folder in ("pictures", "scans"):
        (own / before).rename(own / folder)
        before = folder
        source = Instances(own, "train", json="all.json", images=folder)
        assert source[0]["where"] == str(own / folder / "a.png")


def test_all_images_of_an_annotation_file(own):
    source = Instances(own, "train", json="all.json", images="photos")
    assert (source.ids, source.labels.sum()) == (["1", "2", "3"], 2)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("1\n4\n", r"list.txt line 2: image '4' is not in .*all.json; write the id or the file_name"),
        ("1\na.png\n", "list.txt line 2: image 'a.png' is already in line 1"),
        ("\n", "no image has an annotation; give the file by config.data.instances"),
    ],
)
def test_bad_lists(own, listed, message):
    write(own / "list.txt", listed)
    with pytest.raises(InputError, match=message):
        Instances(own, "train", json="all.json", images="photos", listed="list.txt")


# Open Images

HEADER = "ImageID,Source,LabelName,Confidence\n"
TRAIN = HEADER + (
    "000002b66c9c498e,verification,/m/01g317,1\n"
    "000002b66c9c498e,crowdsource-verification,/m/04yx4,0\n"
    "000002b97e5471a0,verification,/m/04yx4,1\n"
    "000002b97e5471a0,verification,/m/01g317,1\n"
    "000002b97e5471a0,crowdsource-verification,/m/01g317,0\n"
    "000002c707c9895e,verification,/m/0notlisted,1\n"
    "000002c7aaaaaaaa,verification,/m/09j2d,1\n"
)
DESCRIBED = "/m/01g317,Person\n/m/04yx4,Man\n/m/09j2d,Clothing\n"


@pytest.fixture
def open_images(tmp_path):
    write(tmp_path / "train-annotations-human-imagelabels-boxable.csv", TRAIN)
    write(tmp_path / "class-descriptions-boxable.csv", DESCRIBED)
    for key in ("000002b66c9c498e", "000002b97e5471a0", "000002c707c9895e"):
        write(tmp_path / "train" / f"{key}.jpg", key)
    return tmp_path


def test_open_images(open_images):
    source = OpenImages(open_images, "train")
    assert source.class_names == ("Person", "Man", "Clothing")
    # Of the third image no class is known, the fourth is not on disk. Of the second, people disagree about a class.
    assert source.ids == ["000002b66c9c498e", "000002b97e5471a0"]
    np.testing.assert_array_equal(source.labels, [[1, 0, -1], [-1, 1, -1]])
    assert source[0]["image"] == b"000002b66c9c498e"
    assert "images left out: 1 of 3 are not in train" in checks.summary("train", source)


def test_open_images_assumed_negative(open_images):
    source = OpenImages(open_images, "train", unmentioned="absent")
    np.testing.assert_array_equal(source.labels, [[1, 0, 0], [-1, 1, 0], [0, 0, 0]])


def test_newer_names_and_a_choice_of_classes(open_images):
    write(
        open_images / "oidv7-val-annotations-human-imagelabels.csv",
        HEADER + "000a,verification,/m/04yx4,1.0\n",
    )
    write(open_images / "validation" / "000a.jpg")
    (open_images / "class-descriptions-boxable.csv").unlink()
    write(open_images / "oidv7-class-descriptions.csv", "LabelName,DisplayName\n" + DESCRIBED + "/m/x,Man\n")
    write(open_images / "classes.txt", "/m/01g317\nMan (/m/04yx4)\n")
    source = OpenImages(open_images, "val")
    assert source.class_names == ("Person", "Man (/m/04yx4)")
    np.testing.assert_array_equal(source.labels, [[-1, 1]])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train-annotations-human-imagelabels-boxable.csv", "a,b\n", "line 1: not the header ImageID,Source"),
        (
            "train-annotations-human-imagelabels-boxable.csv",
            HEADER + "a,machine,/m/04yx4,0.7\n",
            "line 2: confidence '0.7' is neither 0 nor 1, so a machine gave it",
        ),
        ("train-annotations-human-imagelabels-boxable.csv", HEADER + "a,b\n", "line 2: 2 fields, wanted 4"),
        ("train-annotations-human-imagelabels-boxable.csv", HEADER, "no image has one of the 3 classes"),
        (
            "train-annotations-human-imagelabels-boxable.csv",
            HEADER + "0b,verification,/m/04yx4,1\n",
            "train: none of 1 images is there, first train/0b.jpg; unpack the images into train/",
        ),
        ("class-descriptions-boxable.csv", "Person\n", "'Person' is not a code and a name"),
        ("class-descriptions-boxable.csv", "/m/1," + "a" * 140_000 + "\n", "not a table of codes and names"),
        ("classes.txt", "Unicorn\n", "class 'Unicorn' is not in class-descriptions-boxable.csv"),
    ],
)
def test_bad_files_of_open_images(open_images, file, text, message):
    write(open_images / file, text)
    with pytest.raises(InputError, match=message) as caught:
        OpenImages(open_images, "train")
    assert "\n" not in str(caught.value)


# NUS-WIDE


@pytest.fixture
def nus_wide(tmp_path):
    write(tmp_path / "ConceptsList" / "Concepts81.txt", "airport\nanimal\n")
    write(
        tmp_path / "ImageList" / "TrainImagelist.txt",
        "actor\\0001_2124494179.jpg \nzoo\\0002_1.jpg \nzoo\\0003_2.jpg \n",
    )
    labels = tmp_path / "Groundtruth" / "TrainTestLabels"
    write(labels / "Labels_airport_Train.txt", "0\n0\n1\n")
    write(labels / "Labels_animal_Train.txt", "0\n1\n1\n")
    for name in ("actor/0001_2124494179.jpg", "zoo/0003_2.jpg"):
        write(tmp_path / "Flickr" / name, name)
    return tmp_path


def test_nus_wide(nus_wide):
    source = NusWide(nus_wide, "train")
    assert source.class_names == ("airport", "animal")
    assert source.ids == ["actor/0001_2124494179.jpg", "zoo/0003_2.jpg"]
    np.testing.assert_array_equal(source.labels, [[0, 0], [1, 1]])
    assert source[1]["image"] == b"zoo/0003_2.jpg"
    assert source.left_out == "images left out: 1 of 3 are not in Flickr"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "Groundtruth/TrainTestLabels/Labels_animal_Train.txt",
            "0\n1\n",
            "2 labels, but TrainImagelist.txt has 3",
        ),
        (
            "Groundtruth/TrainTestLabels/Labels_animal_Train.txt",
            "0\n2\n1\n",
            "line 2: '2' is neither 0 nor 1",
        ),
        ("ImageList/TrainImagelist.txt", "a.jpg\na.jpg\n", "image 'a.jpg' is listed twice"),
        ("ImageList/TrainImagelist.txt", "", "no image in it; unpack ImageList.zip"),
        ("ConceptsList/Concepts81.txt", "airport\nsky\n", "Labels_sky_Train.txt: No such file"),
    ],
)
def test_bad_files_of_nus_wide(nus_wide, file, text, message):
    write(nus_wide / file, text)
    with pytest.raises(InputError, match=message):
        NusWide(nus_wide, "train")


# By configuration


def test_each_layout_is_a_source_by_name(coco2017, own, open_images, nus_wide):
    # All four in one folder.
    config = configs.default()
    config.data.root = str(own)
    config.data.instances.train_json, config.data.instances.train_images = "all.json", "photos"
    found = {}
    for name in ("coco2017", "instances", "open_images", "nus_wide"):
        config.data.source = name
        config.data.unmentioned = "unknown" if name == "open_images" else "absent"
        found[name] = type(build.source(configs.validate(config).data, "train")).__name__
    assert found == {
        "coco2017": "Coco",
        "instances": "Instances",
        "open_images": "OpenImages",
        "nus_wide": "NusWide",
    }
    config.data.source = "coco2017"
    assert sizes.known(config.data).num_images == 117_266
