"""The official annotations of LVIS, on small files of their form."""

import copy
import json

import numpy as np
import pytest

from cfmlc_jax.data.regions import lvis
from cfmlc_jax.errors import InputError

# As in lvis_v1_train.json; v0.5 has "file_name" in place of "coco_url". Class 9 has no box.
OFFICIAL = {
    "info": {"version": "v1.0"},
    "categories": [
        {"id": 4, "name": "zebra", "synset": "zebra.n.01", "frequency": "r", "image_count": 2, "instance_count": 3, "synonyms": ["zebra"], "def": "…"},
        {"id": 2, "name": "bow_(weapon)", "synset": "bow.n.04", "frequency": "r", "image_count": 1, "instance_count": 1, "synonyms": ["bow"], "def": "…"},
        {"id": 9, "name": "cup", "synset": "cup.n.01", "frequency": "r", "image_count": 0, "instance_count": 0, "synonyms": ["cup"], "def": "…"},
    ],
    "images": [
        {"id": 300, "width": 640, "height": 480, "coco_url": "http://x/train2017/300.jpg", "neg_category_ids": [2], "not_exhaustive_category_ids": [4]},
        {"id": 20, "width": 640, "height": 427, "coco_url": "http://x/train2017/20.jpg", "neg_category_ids": [9], "not_exhaustive_category_ids": []},
    ],
    "annotations": [
        {"id": 1, "image_id": 300, "category_id": 4, "bbox": [10.5, 20, 30, 40], "area": 900.0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"id": 2, "image_id": 20, "category_id": 4, "bbox": [0, 0, 5, 5], "area": 25.0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"id": 3, "image_id": 20, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12.0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"id": 4, "image_id": 20, "category_id": 4, "bbox": [7, 7, 5, 5], "area": 25.0, "segmentation": [[0, 0, 1, 0, 1, 1]]},
    ],
}  # fmt: skip


def written(folder, content):
    path = folder / "lvis.json"
    path.write_text(json.dumps(content))
    return path


def test_the_official_form(tmp_path):
    annotations = lvis.read(written(tmp_path, OFFICIAL), training=True)
    assert annotations.categories == (
        lvis.Category(2, "bow_(weapon)", "r"),
        lvis.Category(4, "zebra", "r"),
        lvis.Category(9, "cup", "r"),
    )
    assert annotations.image_ids.tolist() == [20, 300]
    assert annotations.files == ("train2017/20.jpg", "train2017/300.jpg")
    truth = annotations.truth
    assert truth.images.tolist() == [1, 0, 0, 0]
    assert truth.classes.tolist() == [1, 1, 0, 1]
    np.testing.assert_array_equal(truth.corners[0], [10.5, 20, 40.5, 60])
    assert truth.absent.tolist() == [[0, 2], [1, 0]]
    assert truth.incomplete.tolist() == [[1, 1]]
    assert truth.frequency.tolist() == ["r", "r", "r"]


def test_names_of_files(tmp_path):
    """v0.5 has names of COCO 2014; data of one's own may have none."""
    content = copy.deepcopy(OFFICIAL)
    content["images"][0] |= {"file_name": "COCO_val2014_000000000300.jpg"}
    del content["images"][1]["coco_url"]
    assert lvis.read(written(tmp_path, content)).files == ("", "000000000300.jpg")
    content["images"][0] |= {"file_name": "/etc/passwd"}
    with pytest.raises(InputError, match="image 300: path '/etc/passwd'; write a path relative to"):
        lvis.read(written(tmp_path, content))


def test_published_numbers_of_categories(tmp_path):
    assert lvis.CATEGORIES == {"v1": 1203, "v0.5": 1230}
    every = [{"id": i, "name": f"c{i}", "frequency": "c", "image_count": 50} for i in range(1, 1231)]
    content = {"categories": every, "images": [], "annotations": []}
    assert len(lvis.read(written(tmp_path, content), "v0.5").categories) == 1230
    with pytest.raises(
        InputError, match=r"lvis\.json has 1,230 categories, LVIS v1 has 1,203; give the file of"
    ):
        lvis.read(written(tmp_path, content), "v1")


BAD = {
    "category": (
        lambda c: c["annotations"][1].update(category_id=5),
        r"annotation 2: category_id 5 is not one of the 3 between 2 and 9 of .*lvis\.json; use files of the same version",
    ),
    "negative": (
        lambda c: c["images"][0].update(neg_category_ids=[1204]),
        "neg_category_ids of image 300: category_id 1204 is not one of the 3",
    ),
    "image": (lambda c: c["annotations"][0].update(image_id="20"), "annotation 1: image_id '20' is not one of the 2"),
    "contradiction": (
        lambda c: c["images"][1].update(neg_category_ids=[4]),
        "image 20 has category 4 in neg_category_ids and in an annotation",
    ),
    "frequency": (lambda c: c["categories"][0].update(frequency="x"), "category 4 has frequency 'x'; wanted r, c or f"),
    "count": (
        lambda c: c["categories"][0].update(image_count=500),
        "category 4 has frequency 'r' but image_count 500",
    ),
    "counted": (
        lambda c: c["categories"][0].update(image_count=1),
        r"category 4 \(zebra\) has image_count 1, but annotations in 2 images",
    ),
    "box": (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]), "annotation 1: the box .* has a negative side"),
    "crowd": (lambda c: c["annotations"][0].update(iscrowd=1), "annotation 1 has iscrowd 1, but the rules of LVIS know no"),
    "twice": (lambda c: c["categories"][0].update(id=2), "categories: the id 2 is there twice"),
    "of COCO": (lambda c: c["images"][0].pop("neg_category_ids"), "neg_category_ids of image 300 is None, not a list"),
    "no list": (lambda c: c.update(images={}), "images is not a list of objects"),
    "no id": (lambda c: c["images"][0].pop("id"), "images has the id None, not a whole number"),
    "large id": (
        lambda c: c["images"][0].update(id=2**63),
        "images has the id 9223372036854775808, not a whole number of 64 bits",
    ),
    "no category": (lambda c: c.update(categories=[]), "has no category"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    change, message = BAD[name]
    content = copy.deepcopy(OFFICIAL)
    change(content)
    with pytest.raises(InputError, match=message) as caught:
        lvis.read(written(tmp_path, content), training=True)
    assert "\n" not in str(caught.value)


def test_other_files(tmp_path):
    with pytest.raises(InputError, match=r"No such file.*lvisdataset"):
        lvis.read(tmp_path / "missing.json")
    with pytest.raises(InputError, match="is not an object with categories"):
        lvis.read(written(tmp_path, []))
