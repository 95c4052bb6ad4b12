"""Boxes of pictures that are turned, or whose metadata is odd."""

import io

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.classify.boxes import boxes_of
from cfmlc_jax.errors import InputError


def record(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.new("RGB", (6, 4)).save(data, kind, exif=exif)
    boxes = {"boxes": np.float32([[0, 0, 2, 2]]), "box_classes": np.int32([0])}
    return {"image": data.getvalue(), "id": "a", "where": "shelf/a.jpg", **boxes}


@pytest.mark.parametrize(("kind", "always"), [("JPEG", False), ("PNG", False), ("TIFF", True)])
def test_boxes_do_not_turn(kind, always):
    """Those of TIFF files neither, which are turned without the option, too."""
    source = [record(orientation, kind) for orientation in (0, 1, 6, 9)]
    for exif in (False, True):
        found = boxes_of(source, threads=2, exif=exif)
        turned = exif or always
        assert [len(corners) for corners in found.corners] == [1, 1, 0 if turned else 1, 1]
        assert found.sizes.tolist() == [[6, 4]] * 4


def test_a_broken_picture_is_named():
    with pytest.raises(InputError, match=r"^shelf/a\.jpg: the file is empty"):
        boxes_of([record(1, "PNG") | {"image": b""}], threads=1, exif=True)
