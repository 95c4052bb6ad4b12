"""The cache of annotations: made once, made anew if the file changes or the entry is damaged; and that starts read no image."""

import builtins
import io
import json
import os

import numpy as np
import pytest

from cfmlc_jax.data.identity import identity
from cfmlc_jax.data.sources import annotations, coco, visual_genome
from cfmlc_jax.data.sources.checks import require_disjoint, summary
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.image_list import ImageList
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.sources.visual_genome import VisualGenome
from cfmlc_jax.data.sources.voc import CLASS_NAMES, Voc

IMAGES = 6


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def write_coco(root, categories=3):
    for split in ("train", "val"):
        names = [f"COCO_{split}2014_{i:012d}.jpg" for i in range(IMAGES)]
        write_images(root / f"{split}2014", names)
        first = 0 if split == "train" else 100
        document = {
            "images": [
                {"id": first + i, "file_name": name, "width": 64, "height": 48}
                for i, name in enumerate(names)
            ],
            "annotations": [
                {
                    "image_id": first + i,
                    "category_id": i % categories,
                    "bbox": [i, 2, 3 if i else -3, 4],
                    "segmentation": [[1.5, 2.5, 3.5]],
                }
                for i in range(IMAGES)
            ],
            "categories": [{"id": k, "name": f"class “{k}”"} for k in range(categories)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(document))
    return root


def write_visual_genome(root):
    write_images(root / "VG_100K", [f"{i}.jpg" for i in range(IMAGES)])
    objects = [
        {"image_id": i, "objects": [{"object_id": i, "names": ["dog"], "x": 1, "y": 2, "w": 3, "h": 4}]}
        for i in range(IMAGES)
    ]
    (root / "objects.json").write_text(json.dumps(objects))
    (root / "vg256.json").write_text(json.dumps({"dog": ["dog"]}))


def write_voc(root):
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, start in (("trainval", 0), ("test", IMAGES)):
        keys = [f"{start + i:06d}" for i in range(IMAGES)]
        write_images(root / "JPEGImages", [f"{key}.jpg" for key in keys])
        for label in CLASS_NAMES:
            (lists / f"{label}_{name}.txt").write_text("".join(f"{key} 1\n" for key in keys))


def write_table(root):
    for split in ("train", "val"):
        write_images(root / split, [f"{i}.jpg" for i in range(IMAGES)])
        (root / f"{split}.csv").write_text("".join(f"{split}/{i}.jpg,a\n" for i in range(IMAGES)))


def write_list(root):
    for split in ("train", "val"):
        write_images(root / split, [f"{i}.jpg" for i in range(IMAGES)])
        (root / f"Places_LT_{split}.txt").write_text(
            "".join(f"{split}/{i}.jpg {i % 2}\n" for i in range(IMAGES))
        )


SOURCES = {
    "coco": (write_coco, Coco),
    "vg256": (write_visual_genome, lambda root, split: VisualGenome(root, split, root / "vg256.json")),
    "voc2007": (write_voc, Voc),
    "table": (write_table, Table),
    "list": (write_list, lambda root, split: ImageList(root, split, stem="Places_LT")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_no_start_touches_every_image(name, tmp_path, monkeypatch):
    """Opening two splits, their identities and the checks of a run touch folders and lists, but no image."""
    write, make = SOURCES[name]
    write(tmp_path)
    touched = []

    def watch(module, function):
        real = getattr(module, function)

        def watched(path, *args, **options):
            touched.append(os.fspath(path) if isinstance(path, str | os.PathLike) else "")
            return real(path, *args, **options)

        monkeypatch.setattr(module, function, watched)

    for function in ("stat", "lstat", "open", "readlink"):
        watch(os, function)
    watch(builtins, "open")
    monkeypatch.setattr(io, "open", builtins.open)

    train, val = make(tmp_path, "train"), make(tmp_path, "val")
    for source in (train, val):
        assert len(source)
        identity(source)
        repr(source)
        summary("split", source)
    require_disjoint(train, val)
    assert touched
    assert not [path for path in touched if path.endswith(".jpg")]
    train[0]
    assert [path for path in touched if path.endswith(".jpg")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "SMALLEST", 0)
    return tmp_path / "cache" / "cfmlc_jax" / "annotations"


@pytest.fixture
def parsed(monkeypatch):
    """The names of the parsed JSON files."""
    names = []
    read_json = coco.files.read_json

    def read(path, *args, **options):
        names.append(path.name)
        return read_json(path, *args, **options)

    monkeypatch.setattr(coco.files, "read_json", read)
    return names


def assert_equal(one, other):
    assert (one.ids, one.class_names, one._paths) == (other.ids, other.class_names, other._paths)
    assert repr(one) == repr(other)
    assert one.left_out == other.left_out
    pairs = [(one.labels, other.labels)]
    pairs += [
        (getattr(one.boxes(), field), getattr(other.boxes(), field))
        for field in ("corners", "classes", "images", "sizes")
    ]
    for a, b in pairs:
        np.testing.assert_array_equal(a, b, strict=True)


def test_the_second_start_parses_nothing(tmp_path, cache, parsed):
    write_coco(tmp_path)
    first, second = Coco(tmp_path, "train"), Coco(tmp_path, "train")
    assert parsed == ["instances_train2014.json"]
    assert "negative side" in first.left_out
    assert_equal(second, first)
    # Another split and the same file by another path have their own entries.
    assert len(Coco(tmp_path, "val")) == IMAGES
    assert len(Coco(tmp_path / "annotations" / "..", "train")) == IMAGES
    assert len(parsed) == 3
    assert len(list(cache.iterdir())) == 3


def test_visual_genome_depends_on_its_vocabulary_too(tmp_path, cache, parsed):
    write_visual_genome(tmp_path)

    def make():
        return VisualGenome(tmp_path, "train", tmp_path / "vg256.json")

    assert_equal(make(), make())
    assert parsed == ["vg256.json", "objects.json"]
    (tmp_path / "vg256.json").write_text(json.dumps({"hound": ["dog"]}))
    assert make().class_names == ("hound",)
    assert len(list(cache.iterdir())) == 1


def test_a_changed_file_is_parsed_again_and_replaces_its_entry(tmp_path, cache, parsed):
    write_coco(tmp_path)
    assert len(Coco(tmp_path, "train").class_names) == 3
    write_coco(tmp_path, categories=2)
    assert len(Coco(tmp_path, "train").class_names) == 2
    (entry,) = cache.iterdir()
    # The same size, another time of modification.
    path = tmp_path / "annotations" / "instances_train2014.json"
    os.utime(path, ns=(1, 1))
    assert len(Coco(tmp_path, "train").class_names) == 2
    assert len(parsed) == 3
    assert [other != entry for other in cache.iterdir()] == [True]


@pytest.mark.parametrize("damage", [b"", b"no archive", slice(0, 700), "bits"])
def test_a_damaged_entry_is_made_anew(tmp_path, cache, parsed, damage):
    write_coco(tmp_path)
    first = Coco(tmp_path, "train")
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    if damage == "bits":
        entry.write_bytes(whole[:80] + bytes(byte ^ 255 for byte in whole[80:120]) + whole[120:])
    else:
        entry.write_bytes(whole[damage] if isinstance(damage, slice) else damage)
    assert_equal(Coco(tmp_path, "train"), first)
    assert len(parsed) == 2
    assert_equal(Coco(tmp_path, "train"), first)
    assert len(parsed) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache, parsed):
    write_coco(tmp_path)
    cache.parent.parent.write_text("a file where the folder should be")
    assert_equal(Coco(tmp_path, "train"), Coco(tmp_path, "train"))
    assert len(parsed) == 2


def test_small_files_are_not_cached(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(annotations, "SMALLEST", 1 << 20)
    write_coco(tmp_path)
    Coco(tmp_path, "train")
    assert not cache.exists()


def test_missing_files_are_still_named(tmp_path, cache):
    (tmp_path / "train2014").mkdir()
    with pytest.raises(coco.InputError, match=r"instances_train2014\.json"):
        Coco(tmp_path, "train")
    with pytest.raises(visual_genome.InputError, match="names"):
        VisualGenome(tmp_path, "train", tmp_path / "names.json")
