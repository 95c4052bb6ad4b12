import pickle

import numpy as np
import pytest

from cfmlc_jax.data.sources import voc
from cfmlc_jax.data.sources.boxes import LeftOut
from cfmlc_jax.data.sources.checks import summary
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
    easy, two = source.boxes().of_image(0), source.boxes().of_image(1)
    np.testing.assert_array_equal(easy[0], [[0, 0, 2, 2]])
    np.testing.assert_array_equal(easy[1], [PERSON])
    np.testing.assert_array_equal(two[0], [[47, 239, 195, 371], [7, 11, 352, 498]])
    np.testing.assert_array_equal(two[1], [DOG, PERSON])
    assert (two[0].dtype, two[1].dtype) == (np.float32, np.int32)


def test_files_of_boxes_are_read_for_boxes_alone(boxes, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a file of boxes is read")

    monkeypatch.setattr(voc, "read_boxes", refuse)
    source = Voc(tmp_path, "train")
    assert len([source[i] for i in range(2)]) == 2
    with pytest.raises(AssertionError, match="a file of boxes is read"):
        source.boxes()


def test_sizes_are_those_of_the_annotations(boxes, tmp_path):
    (boxes / "000012.xml").write_text(
        "<annotation><size><width>353</width><height>500</height></size></annotation>"
    )
    assert Voc(tmp_path, "train").boxes().sizes.tolist() == [[0, 0], [353, 500]]


def test_no_boxes_without_annotations(devkit, tmp_path):
    assert Voc(tmp_path, "train").boxes() is None


def test_it_pickles_and_its_repr_has_no_path(boxes, tmp_path):
    source = pickle.loads(pickle.dumps(Voc(tmp_path, "train")))
    assert source.boxes().of_image(1)[0].shape == (2, 4)
    assert str(tmp_path) not in repr(source)


def test_an_image_without_boxes_file(boxes, tmp_path):
    (boxes / "000005.xml").unlink()
    source = Voc(tmp_path, "train")
    boxes_read = source.boxes()
    assert [len(boxes_read.of_image(i)[0]) for i in (0, 1)] == [0, 2]
    assert (
        boxes_read.left_out
        == f"boxes left out of localisation: 1, first {boxes}/000005.xml: No such file or directory"
    )


def test_a_damaged_box_file_does_not_end_training(boxes, tmp_path):
    (boxes / "000005.xml").write_text("<annotation>")
    (boxes / "000012.xml").write_bytes(b"\xff\xfe")
    source = Voc(tmp_path, "train")
    assert source[0]["image"] == b"000005"
    boxes_read = source.boxes()
    assert not len(boxes_read.images)
    assert boxes_read.left_out.startswith(
        f"boxes left out of localisation: 2, first {boxes}/000005.xml: broken XML (no element found"
    )
    assert boxes_read.left_out in summary("train", source, read_boxes=True)


def test_missing_image(devkit, tmp_path):
    (devkit / "JPEGImages" / "000012.jpg").unlink()
    with pytest.raises(
        InputError, match=r"1 of 2 files are missing, first JPEGImages/000012\.jpg; unpack VOCtrainval"
    ):
        Voc(tmp_path, "train")


@pytest.mark.parametrize("line", ["000005 2", "000005", "000005 dog 1"])
def test_an_invalid_line_is_named_with_its_place(devkit, tmp_path, line):
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
    ("body", "reason"),
    [
        (instance("unicorn", 1, 1, 2, 2), "object 0: 'unicorn' is not a class"),
        (instance("dog", 1, 1, 2, "x"), "object 0: the box ['1', '1', '2', 'x'] is not 4 numbers"),
        ("<object><name>dog</name></object>", "object 0: the box [None, None, None, None] is not 4 numbers"),
        (instance("dog", 1, 1, "nan", 2), "object 0: the box [0.0, 0.0, nan, 2.0] is not 4 numbers"),
        (instance("dog", 9, 1, 2, 2), "object 0: the box [8.0, 0.0, -6.0, 2.0] has a negative side"),
        (
            instance("dog", 1, 1, 2, "9e9"),
            "object 0: the box [0.0, 0.0, 2.0, 9000000000.0] is outside any image",
        ),
        (
            "<size><width>50</width><height>40</height></size>" + instance("dog", 60, 1, 70, 9),
            "object 0: the box [59.0, 0.0, 11.0, 9.0] is outside its image of 50 x 40",
        ),
    ],
)
def test_an_invalid_box_is_left_out_and_reported(tmp_path, body, reason):
    path, left_out = tmp_path / "000005.xml", LeftOut()
    path.write_text(f"<annotation>{body}{instance('dog', 1, 1, 2, 2)}</annotation>")
    assert read_boxes(path, left_out).instances == [(DOG, [0, 0, 2, 2])]
    assert left_out.count == 1
    assert left_out.first.startswith(f"{path}: {reason}")


def test_an_image_of_difficult_instances_only_has_no_box(tmp_path):
    path, left_out = tmp_path / "a.xml", LeftOut()
    path.write_text(f"<annotation>{instance('dog', 1, 1, 2, 2, difficult=1)}</annotation>")
    assert read_boxes(path, left_out) == ([], None)
    assert str(left_out) == ""


def test_an_image_that_is_listed_twice(devkit, tmp_path):
    path = devkit / "ImageSets" / "Main" / "dog_trainval.txt"
    path.write_text("000012 1\n000005 -1\n000012 1\n")
    assert Voc(tmp_path, "train").labels[:, DOG].tolist() == [0, 1]
    path.write_text("000012 1\n000005 -1\n000012 -1\n")
    with pytest.raises(InputError, match=r"dog_trainval\.txt line 3: 000012 is -1, but 1 in line 1"):
        Voc(tmp_path, "train")
    path.write_text("000012 1\n./000012 1\n")
    with pytest.raises(
        InputError, match=r"the images \./000012 and 000012 are the same file, JPEGImages/000012\.jpg"
    ):
        Voc(tmp_path, "train")


# Each level is ten of the one before: at the end a thousand million, or a file of this machine.
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
LONG = f'<!ENTITY l9 "{"x" * 100_000}">'


@pytest.mark.parametrize(
    ("entities", "text", "reason"),
    [
        (f'<!ENTITY l0 "lol">{LAUGHS}', "&l9;", "limit on input amplification factor"),
        (LONG, "&l9;" * 10_000, "limit on input amplification factor"),
        ('<!ENTITY file SYSTEM "file:///etc/hostname">', "&file;", "undefined entity"),
        ('<!ENTITY % all SYSTEM "http://127.0.0.1:9/x.dtd"> %all;', "&file;", "undefined entity"),
    ],
    ids=["exponential", "quadratic", "external", "parameter"],
)
def test_entities_are_neither_expanded_without_end_nor_fetched(tmp_path, entities, text, reason):
    path, left_out = tmp_path / "000005.xml", LeftOut()
    body = f"<annotation><object><name>{text}</name></object></annotation>"
    path.write_text(f"<!DOCTYPE annotation [{entities}]>{body}")
    assert read_boxes(path, left_out).instances == []
    if reason == "undefined entity":  # some versions of the parser leave it out instead
        assert left_out.count == 1
    else:
        assert f"broken XML ({reason}" in str(left_out)
