import pickle

import numpy as np
import pytest

from cfmlc_jax.data.sources.voc import CLASS_NAMES, Voc, read_boxes
from cfmlc_jax.errors import InputError

DOG, PERSON, SHEEP = (CLASS_NAMES.index(name) for name in ("dog", "person", "sheep"))

# Image -> class -> the official file's number; every other class is -1.
TRAINVAL = {
    "000012": {"dog": 1, "person": 1},
    "000005": {"person": 1, "dog": 0},
    "000009": {"sheep": 0},
}

INSTANCE = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>{more}</object>"""


def instance(name, *corners, difficult=0, more=""):
    return INSTANCE.format(*corners, name=name, difficult=difficult, more=more)


def write_split(root, image_list, images):
    lists = root / "ImageSets" / "Main"
    for folder in (lists, root / "JPEGImages"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in CLASS_NAMES:
        lines = [f"{key} {labels.get(name, -1):2d}" for key, labels in images.items()]
        (lists / f"{name}_{image_list}.txt").write_text("\n".join(lines) + "\n")
    for key in images:
        (root / "JPEGImages" / f"{key}.jpg").write_bytes(key.encode())


@pytest.fixture
def devkit(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2007"
    write_split(root, "trainval", TRAINVAL)
    write_split(root, "test", {"000001": {"dog": 1}})
    return root


@pytest.fixture
def boxes(devkit):
    (devkit / "Annotations").mkdir()
    inside = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    bodies = {
        "000012": instance("dog", 48, 240, 195, 371) + instance("person", 8, 12, 352, 498, more=inside),
        "000005": instance("person", 1, 1, 2, 2) + instance("dog", 5, 5, 9, 9, difficult=1),
    }
    for key, body in bodies.items():
        (devkit / "Annotations" / f"{key}.xml").write_text(f"<annotation>{body}</annotation>")
    return devkit / "Annotations"


def test_twenty_classes_in_alphabetical_order():
    assert len(CLASS_NAMES) == 20
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)


def test_difficult_is_absent_and_images_without_a_class_are_dropped(devkit, tmp_path):
    source = Voc(tmp_path, "train")
    assert source.ids == ["000005", "000012"]
    wanted = np.zeros((2, 20), np.uint8)
    wanted[0, PERSON] = wanted[1, DOG] = wanted[1, PERSON] = 1
    np.testing.assert_array_equal(source.labels, wanted)
    assert source.labels.dtype == np.uint8


def test_val_is_the_test_list(devkit, tmp_path):
    source = Voc(tmp_path, "val")
    assert source.ids == ["000001"]
    assert source[0]["image"] == b"000001"
    assert source[0]["where"] == str(devkit / "JPEGImages" / "000001.jpg")


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_root_may_be_any_of_three_folders(devkit, tmp_path, place):
    assert repr(Voc(tmp_path / place, "train")) == repr(Voc(tmp_path, "train"))


def test_boxes_count_pixels_from_zero_and_leave_difficult_out(boxes, tmp_path):
    source = Voc(tmp_path, "train")
    easy, two = source[0], source[1]
    np.testing.assert_array_equal(easy["boxes"], [[0, 0, 2, 2]])
    np.testing.assert_array_equal(easy["box_classes"], [PERSON])
    np.testing.assert_array_equal(two["boxes"], [[47, 239, 195, 371], [7, 11, 352, 498]])
    np.testing.assert_array_equal(two["box_classes"], [DOG, PERSON])
    assert (two["boxes"].dtype, two["box_classes"].dtype) == (np.float32, np.int32)


def test_no_boxes_without_annotations(devkit, tmp_path):
    assert "boxes" not in Voc(tmp_path, "train")[0]


def test_pickles_and_repr_has_no_path(boxes, tmp_path):
    source = pickle.loads(pickle.dumps(Voc(tmp_path, "train")))
    assert source[1]["boxes"].shape == (2, 4)
    assert str(tmp_path) not in repr(source)


def test_an_image_without_boxes_file(boxes, tmp_path):
    (boxes / "000005.xml").unlink()
    with pytest.raises(InputError, match=r"Annotations: 1 of 2 files are missing, first 000005\.xml"):
        Voc(tmp_path, "train")


def test_missing_image(devkit, tmp_path):
    (devkit / "JPEGImages" / "000012.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 2 files are missing, first 000012\.jpg; unpack VOCtrainval"):
        Voc(tmp_path, "train")


@pytest.mark.parametrize("line", ["000005 2", "000005", "000005 dog 1"])
def test_a_bad_line_is_placed(devkit, tmp_path, line):
    (devkit / "ImageSets" / "Main" / "dog_trainval.txt").write_text(f"000012  1\n{line}\n")
    with pytest.raises(InputError, match=rf"dog_trainval\.txt line 2: '{line}' is not"):
        Voc(tmp_path, "train")


def test_a_missing_list_and_a_missing_data_set(devkit, tmp_path):
    (devkit / "ImageSets" / "Main" / "cow_test.txt").unlink()
    with pytest.raises(InputError, match=r"cow_test\.txt: No such file.*VOCtest_06-Nov-2007\.tar"):
        Voc(tmp_path, "val")
    with pytest.raises(InputError, match="no VOCdevkit/VOC2007/ImageSets/Main in it"):
        Voc(tmp_path / "elsewhere", "val")


def test_a_split_without_classes(devkit, tmp_path):
    write_split(devkit, "test", {"000001": {"dog": 0}})
    with pytest.raises(InputError, match="no image of 'test' has a class"):
        Voc(tmp_path, "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "broken XML"),
        (f"<annotation>{instance('unicorn', 1, 1, 2, 2)}</annotation>", "'unicorn' is not a class"),
        (f"<annotation>{instance('dog', 1, 1, 2, 'x')}</annotation>", "a box is not four numbers"),
    ],
)
def test_a_bad_boxes_file_is_named(tmp_path, text, message):
    path = tmp_path / "000005.xml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"000005\.xml: .*{message}"):
        read_boxes(path)


def test_an_image_of_difficult_instances_only_has_empty_arrays(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{instance('dog', 1, 1, 2, 2, difficult=1)}</annotation>")
    corners, classes = read_boxes(path)
    assert corners.shape == (0, 4)
    assert classes.shape == (0,)
