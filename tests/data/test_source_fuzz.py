"""Annotations of any content: a source opens with sound labels and boxes, or one line says what is wrong and where."""

import json

import numpy as np
import pytest
from fuzzing import cases, mutated, spoiled
from hypothesis import given

from cfmlc_jax.data.sources import checks
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.image_list import ImageList
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.sources.visual_genome import VisualGenome
from cfmlc_jax.data.sources.voc import CLASS_NAMES, Voc
from cfmlc_jax.errors import InputError

COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "sub/b.jpg"},
        {"id": "3", "file_name": ".\\sub\\c.jpg"},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]},
        {"id": 6, "image_id": 2.0, "category_id": "2", "bbox": [0.5, 2, 3, 4]},
        {"id": 7, "image_id": 3, "category_id": 1},
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": 7}],
}
VISUAL_GENOME = [
    {
        "image_id": number,
        "objects": [{"object_id": number, "names": ["Zebra.", "horse"], "x": 1, "y": 2, "w": 3, "h": 4}],
    }
    for number in range(4)
]
VOCABULARY = {"zebra": ["zebra", "zebras"], "grass": ["grass"]}
XML = """<annotation><size><width>64</width><height>48</height></size><object><name>dog</name>
<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object></annotation>"""
TABLE = "file,labels\na.jpg,dog;cat\nsub/b.jpg,\n\nsub/c.jpg, dog ; bird\n"
LIST = "a.jpg 0\nsub/b.jpg 1\nsub/c.jpg 0\n"

many = cases(400)


def opens_or_says(place, make):
    """What must hold of a source, or of the error; whether it opened."""
    try:
        source = make()
    except InputError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert str(place) in message
        message.encode()
        return False
    assert source.labels.shape == (len(source), len(source.class_names))
    assert source.labels.dtype == np.uint8
    assert len(set(source.ids)) == len(source.ids) > 0
    assert len(set(source.class_names)) == len(source.class_names)
    assert len(source.pictures()) == len(source)
    for index in range(len(source)):
        record = source[index]
        assert record["image"]
    boxes = source.boxes()
    if boxes is not None:
        assert boxes.corners.shape == (*boxes.classes.shape, 4)
        assert boxes.images.shape == boxes.classes.shape
        assert (np.diff(boxes.images) >= 0).all()
        assert boxes.images.max(initial=0) < len(source) == len(boxes.sizes)
        assert np.isfinite(boxes.corners).all()
        assert (boxes.corners[:, 2:] >= boxes.corners[:, :2]).all()
        assert boxes.classes.max(initial=0) < len(source.class_names)
    text = checks.summary("train", source, read_boxes=True) + repr(source)
    text.encode()
    return True


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Makes a folder with a.jpg, sub/b.jpg and sub/c.jpg in the folders named."""

    def make(*folders):
        root = tmp_path_factory.mktemp("data")
        for folder in folders:
            (root / folder / "sub").mkdir(parents=True)
            for name in ("a.jpg", "sub/b.jpg", "sub/c.jpg"):
                (root / folder / name).write_bytes(b"x")
        return root

    return make


@pytest.fixture(scope="module")
def coco(photos):
    root = photos("train2014")
    (root / "annotations").mkdir()
    return root


def open_coco(root, text):
    path = root / "annotations" / "instances_train2014.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return opens_or_says(root, lambda: Coco(root, "train"))


@many
@given(document=mutated(COCO))
def test_coco(coco, document):
    open_coco(coco, json.dumps(document))


@many
@given(text=spoiled(json.dumps(COCO)))
def test_bytes_for_coco(coco, text):
    open_coco(coco, text)


def test_valid_files_are_opened(coco, visual_genome, voc, photos):
    assert open_coco(coco, json.dumps(COCO))
    assert open_genome(visual_genome, VISUAL_GENOME, VOCABULARY)
    assert open_voc(voc, XML.encode(), b"a 1\nsub/b 1\n")
    assert open_table(photos("."), TABLE.encode())
    assert open_list(photos("."), LIST.encode())


@pytest.fixture(scope="module")
def visual_genome(tmp_path_factory):
    root = tmp_path_factory.mktemp("genome")
    (root / "VG_100K").mkdir()
    for number in range(4):
        (root / "VG_100K" / f"{number}.jpg").write_bytes(b"x")
    return root


def open_genome(root, objects, vocabulary):
    (root / "objects.json").write_text(json.dumps(objects))
    (root / "names.json").write_text(json.dumps(vocabulary))
    return opens_or_says(root, lambda: VisualGenome(root, "train", root / "names.json"))


@many
@given(document=mutated(VISUAL_GENOME))
def test_visual_genome(visual_genome, document):
    open_genome(visual_genome, document, VOCABULARY)


@many
@given(vocabulary=mutated(VOCABULARY))
def test_vocabulary(visual_genome, vocabulary):
    open_genome(visual_genome, VISUAL_GENOME, vocabulary)


@pytest.fixture(scope="module")
def voc(photos):
    root = photos("JPEGImages")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations" / "sub").mkdir(parents=True)
    for name in CLASS_NAMES:
        (root / "ImageSets" / "Main" / f"{name}_trainval.txt").write_text("a 1\n")
    return root


def open_voc(root, xml, lines):
    (root / "ImageSets" / "Main" / "dog_trainval.txt").write_bytes(lines)
    (root / "Annotations" / "a.xml").write_bytes(xml)
    return opens_or_says(root, lambda: Voc(root, "train"))


@many
@given(xml=spoiled(XML))
def test_voc_boxes_never_end_a_run(voc, xml):
    assert open_voc(voc, xml, b"a 1\n")


@many
@given(lines=spoiled("a 1\nsub/b  -1\nsub/c 1\n"))
def test_voc_lists(voc, lines):
    open_voc(voc, XML.encode(), lines)


@pytest.fixture(scope="module")
def folder(photos):
    return photos(".")


def open_table(root, text):
    (root / "train.csv").write_bytes(text)
    return opens_or_says(root, lambda: Table(root, "train"))


@many
@given(text=spoiled(TABLE))
def test_tables(folder, text):
    open_table(folder, text)


@many
@given(text=spoiled("a.jpg;dog;cat\nsub/b.jpg;;\n") | spoiled("a.jpg\tdog;cat\nsub/b.jpg\t\n"))
def test_tables_with_other_separators(folder, text):
    open_table(folder, text)


def open_list(root, text):
    (root / "Places_LT_train.txt").write_bytes(text)
    return opens_or_says(root, lambda: ImageList(root, "train", stem="Places_LT"))


@many
@given(text=spoiled(LIST))
def test_lists(folder, text):
    open_list(folder, text)


@many
@given(text=spoiled("zoo\nbar\n"))
def test_class_lists(folder, text):
    (folder / "classes.txt").write_bytes(text)
    try:
        open_list(folder, LIST.encode())
        open_table(folder, TABLE.encode())
    finally:
        (folder / "classes.txt").unlink()
