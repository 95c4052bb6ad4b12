"""Boxes of splits: sizes of images, rotated images, and which files are read to find out."""

import io

import jax
import launchers
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from cfmlc_jax.classify.boxes import boxes_of
from cfmlc_jax.data.sources.boxes import Boxes, from_annotations
from cfmlc_jax.data.sources.files import FileSource
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.errors import InputError


def picture(orientation, kind, size=(6, 4)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.new("RGB", size).save(data, kind, exif=exif)
    return data.getvalue()


class Shelf:
    """Images with one box each; `read` records which of them were read.

    sizes: the image sizes in the annotations.
    """

    class_names = ("a",)

    def __init__(self, pictures, sizes=None, **boxes):
        self.pictures, self.read = pictures, []
        self.ids = [str(i) for i in range(len(pictures))]
        self.labels = np.ones((len(pictures), 1), np.uint8)
        n = len(pictures)
        plain = {"owners": range(n), "boxes": [[0, 0, 2, 2]] * n, "classes": [0] * n}
        self._boxes = from_annotations(**plain | boxes, sizes=sizes or [None] * n)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.read.append(index)
        return {"image": self.pictures[index], "id": self.ids[index], "where": f"shelf/{index}.jpg"}

    def boxes(self):
        return self._boxes


@pytest.mark.parametrize(("kind", "always"), [("JPEG", False), ("PNG", False), ("TIFF", True)])
def test_boxes_are_not_rotated_by_exif(kind, always):
    """Also not those of TIFF images, which are rotated without the option too."""
    source = Shelf([picture(orientation, kind) for orientation in (0, 1, 6, 9)])
    for exif in (False, True):
        boxes = boxes_of(source, threads=2, exif=exif)
        turned = exif or always
        assert boxes.images.tolist() == ([0, 1, 3] if turned else [0, 1, 2, 3])
        assert boxes.corners.tolist() == [[0, 0, 2, 2]] * len(boxes.images)
        assert boxes.sizes.tolist() == [[6, 4]] * 4


def test_boxes_of_images_rotated_by_exif_are_left_out():
    pictures = [picture(1, "JPEG", (40, 20)), picture(6, "JPEG", (40, 20))]
    source = Shelf(pictures, boxes=[[1, 2, 2, 2]] * 2, classes=[5, 5])
    as_stored = boxes_of(source, threads=2, exif=False)
    assert as_stored.images.tolist() == [0, 1]
    assert as_stored.sizes.tolist() == [[40, 20], [40, 20]]
    upright = boxes_of(source, threads=2, exif=True)
    assert upright.images.tolist() == [0]
    assert upright.classes.tolist() == [5]
    assert upright.corners.dtype == np.float32
    assert (upright.classes.dtype, upright.images.dtype) == (np.int32, np.int64)
    assert boxes_of(object_source(), threads=1, exif=False) is None


def test_headers_are_read_where_annotations_do_not_say():
    pictures = [picture(1, "PNG") for _ in range(4)]
    # The last image has no box, so its size is not needed.
    source = Shelf(
        pictures, [(9, 8), None, (7.5, 8), None], owners=[2, 0, 1], boxes=[[0, 0, 2, 2]] * 3, classes=[0] * 3
    )
    boxes = boxes_of(source, threads=1, exif=False)
    assert source.read == [1, 2]
    assert boxes.sizes.tolist() == [[9, 8], [6, 4], [6, 4], [0, 0]]
    source.read.clear()
    turned = boxes_of(source, threads=1, exif=True)
    assert source.read == [0, 1, 2]
    assert turned.sizes.tolist() == [[6, 4], [6, 4], [6, 4], [0, 0]]


def as_processes(monkeypatch, source, count):
    """The boxes of each of so many processes, which read one after the other: their parts, then what they get of all."""
    monkeypatch.setattr(jax, "process_count", lambda: count)
    parts, read = [], []

    class Gathering(Exception):
        pass

    def capture(headers):
        parts.append(headers)
        raise Gathering

    for process in range(count):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(multihost_utils, "process_allgather", capture)
        with pytest.raises(Gathering):
            boxes_of(source, threads=1, exif=True)
        read.append(source.read.copy())
        source.read.clear()
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda headers: np.stack(parts))
    return read, boxes_of(source, threads=1, exif=True)


def test_processes_share_the_headers(monkeypatch):
    source = Shelf([picture(orientation, "JPEG") for orientation in (1, 6, 1, 3, 1)])
    read, boxes = as_processes(monkeypatch, source, 2)
    assert read == [[0, 2, 4], [1, 3]]
    assert boxes.images.tolist() == [0, 2, 4]
    assert boxes.sizes.tolist() == [[6, 4]] * 5


# Process 0 waits for the headers of process 1, which fails.
READING = """
import time
import jax
from classify.test_boxes import Shelf, boxes_of, picture
from cfmlc_jax import cli, processes
from cfmlc_jax.errors import InputError

members = processes.join(None, None, None)
try:
    with members:
        time.sleep(3 * jax.process_index())
        boxes_of(Shelf([picture(1, "JPEG"), b"", picture(1, "JPEG")]), threads=1, exif=True)
except InputError as error:
    members.fail(error)
    cli.end(1)
"""


def test_a_header_that_one_process_cannot_read_ends_all():
    results = launchers.ends(launchers.start("slurm", READING))
    assert [code for code, _, _ in results] == [1, 1], results
    (line,) = [line for _, _, err in results for line in err.splitlines() if line.startswith("error")]
    assert line.startswith("error: process 1 on ")
    assert " failed: shelf/1.jpg: the file is empty" in line


def test_decoded_pictures_need_no_header():
    source = Shelf([np.zeros((4, 6, 3), np.uint8)])
    assert boxes_of(source, threads=1, exif=True).sizes.tolist() == [[6, 4]]


def test_a_broken_picture_is_named():
    with pytest.raises(InputError, match=r"^shelf/0\.jpg: the file is empty"):
        boxes_of(Shelf([b""]), threads=1, exif=True)


def test_sizes_of_tiff_files_are_not_trusted(tmp_path):
    names = ["a.jpg", "b.tif", "c.TIFF"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    source = FileSource(
        root=tmp_path,
        split="val",
        paths=names,
        ids=names,
        labels=np.ones((3, 1), np.uint8),
        class_names=("a",),
        boxes=from_annotations([0, 1, 2], [[0, 0, 1, 1]] * 3, [0, 0, 0], [(6, 4)] * 3),
    )
    assert source.boxes().sizes.tolist() == [[6, 4], [0, 0], [0, 0]]


def test_boxes_of_selected_records():
    scenes = Scenes("val", num_scenes=5)
    every, kept = scenes.boxes(), Selected(scenes, [4, 0, 0]).boxes()
    assert isinstance(kept, Boxes)
    for position, scene in enumerate([4, 0, 0]):
        for one, other in zip(kept.of_image(position), every.of_image(scene), strict=True):
            np.testing.assert_array_equal(one, other)
    assert kept.sizes.tolist() == [[64, 64]] * 3
    assert boxes_of(Selected(object_source(), [0]), threads=1, exif=False) is None


def object_source():
    """A source without boxes."""
    return type("Plain", (), {"class_names": ("a",), "labels": np.ones((1, 1), np.uint8), "ids": ["x"]})()
