import dataclasses
import json
import os

import numpy as np
import pytest

from cfmlc_jax.data.sources.checks import require_disjoint, require_same_classes, summary
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.image_list import ImageList
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.errors import InputError


@dataclasses.dataclass
class Fake:
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: list[str]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        raise AssertionError("a check must not read an image")

    def __repr__(self):
        return f"Fake({len(self)})"


def fake(ids, labels=None, names=("cat", "dog", "eel")):
    labels = np.zeros((len(ids), len(names)), np.uint8) if labels is None else np.array(labels, np.uint8)
    return Fake(names, labels, ids)


def test_summary_names_the_rarest_and_the_commonest_class():
    labels = [[1, 0, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]]
    text = summary("train", fake(["d", "a", "c", "b"], labels))
    assert text.splitlines() == [
        "train: 4 images, 3 classes, 1.75 labels per image",
        "  positives per class: min 1 (dog), median 2, max 4 (cat)",
        "  first ids: d, a, c",
    ]


def test_summary_counts_beyond_uint8():
    assert "max 300 (cat)" in summary("train", fake([str(i) for i in range(300)], [[1, 0, 1]] * 300))


def test_summary_names_classes_without_positives():
    names = tuple("abcdefgh")
    text = summary("val", fake(["x"], [[1, 0, 0, 0, 0, 0, 0, 1]], names))
    assert "  without a positive: 6 (b, c, d, e, f, …)" in text.splitlines()
    assert "  without a positive: 1 (dog)" in summary("val", fake(["x"], [[1, 0, 1]])).splitlines()


def test_disjoint_sources_pass_and_shared_ids_are_named():
    a = fake(["1", "2", "30", "4"])
    require_disjoint(a, fake(["3", "22"]))
    with pytest.raises(
        InputError, match=r"2 images are in both Fake\(4\) and Fake\(3\), first 2, 30; remove them"
    ):
        require_disjoint(a, fake(["30", "5", "2"]))


def write_coco(root, **names):
    """Both splits in COCO's format, ids counted from 1 in each."""
    (root / "annotations").mkdir()
    for split, files in names.items():
        numbers = range(1, len(files) + 1)
        document = {
            "images": [{"id": n, "file_name": name} for n, name in zip(numbers, files)],
            "annotations": [{"image_id": n, "category_id": 1} for n in numbers],
            "categories": [{"id": 1, "name": "dog"}],
        }
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(document))


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def both(source, root, **options):
    return [source(root, split, **options) for split in ("train", "val")]


def test_equal_ids_of_other_files_are_no_leak(tmp_path):
    write_coco(tmp_path, train=["a.jpg", "b.jpg"], val=["a.jpg", "b.jpg"])
    for split in ("train", "val"):
        for name in "ab":
            photo(tmp_path / f"{split}2014" / f"{name}.jpg")
    train, val = both(Coco, tmp_path)
    assert train.ids == val.ids == ["1", "2"]
    require_disjoint(train, val)


def test_one_file_under_other_ids_is_a_leak(tmp_path):
    write_coco(tmp_path, train=["../images/a.jpg"], val=["../images/b.jpg", "./../images/./a.jpg"])
    for name in "ab":
        photo(tmp_path / "images" / f"{name}.jpg")
    with pytest.raises(InputError, match=r"1 images are in both .*, first .*images/a\.jpg; remove them"):
        require_disjoint(*both(Coco, tmp_path))


@pytest.mark.parametrize("linked", ["folder", "file"])
def test_links_are_followed(tmp_path, linked):
    write_coco(tmp_path, train=["a.jpg"], val=["b.jpg" if linked == "file" else "a.jpg"])
    photo(tmp_path / "train2014" / "a.jpg")
    if linked == "folder":
        os.symlink("train2014", tmp_path / "val2014")
    else:
        (tmp_path / "val2014").mkdir()
        os.symlink("../train2014/a.jpg", tmp_path / "val2014" / "b.jpg")
    with pytest.raises(InputError, match="1 images are in both"):
        require_disjoint(*both(Coco, tmp_path))


@pytest.mark.parametrize(
    "written", ["./sub/caf\u00e9.jpg", "sub\\caf\u00e9.jpg", "sub/cafe\u0301.jpg", "sub/x/../caf\u00e9.jpg"]
)
@pytest.mark.parametrize("kind", ["table", "list"])
def test_one_file_in_two_spellings_is_a_leak(tmp_path, kind, written):
    photo(tmp_path / "sub" / "cafe\u0301.jpg")
    for split, path in (("train", "sub/caf\u00e9.jpg"), ("val", written)):
        if kind == "table":
            (tmp_path / f"{split}.csv").write_text(f"{path},dog\n", encoding="utf-8")
        else:
            (tmp_path / f"Places_LT_{split}.txt").write_text(f"{path} 0\n", encoding="utf-8")
    sources = both(Table, tmp_path) if kind == "table" else both(ImageList, tmp_path, stem="Places_LT")
    with pytest.raises(InputError, match=r"1 images are in both .*, first .*\.jpg; remove them"):
        require_disjoint(*sources)


def test_classes_in_another_order_are_refused():
    train = fake(["a"])
    require_same_classes(train, fake(["b"]))
    for names, message in (
        (("cat", "eel", "dog"), r"class 1 is 'dog' in Fake\(1\) and 'eel' in Fake\(1\)"),
        (("cat", "dog"), "class 2 is 'eel' in .* and none in "),
        (("cat", "dog", "eel", "fly"), "class 3 is none in .* and 'fly' in "),
    ):
        with pytest.raises(InputError, match=message):
            require_same_classes(train, fake(["b"], names=names))
