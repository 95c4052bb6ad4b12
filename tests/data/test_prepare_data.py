import dataclasses
import hashlib
import json
import re
from pathlib import Path

import mnist_files
import pytest

from cfmlc_jax.data import __main__ as prepare_data
from cfmlc_jax.data import build
from cfmlc_jax.data.sources import colored_mnist_file, mechanism_digits
from cfmlc_jax.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    return prepare_data


def write_coco(root):
    (root / "annotations").mkdir()
    for split, number in (("train", 1), ("val", 2)):
        name = f"COCO_{split}2014_{number:012d}.jpg"
        document = {
            "images": [{"id": number, "file_name": name}],
            "annotations": [{"image_id": number, "category_id": 1, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 1, "name": "person"}],
        }
        (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(document))
        (root / f"{split}2014").mkdir()
        (root / f"{split}2014" / name).write_bytes(b"x")


@pytest.fixture
def small_coco(script, monkeypatch):
    """The coco entry with the counts of `write_coco`, as if those were the official ones."""
    small = dataclasses.replace(
        script.DATA_SETS["coco"],
        images=(script.Images(("train2014",), 1), script.Images(("val2014",), 1)),
        split_sizes=(1, 1),
    )
    monkeypatch.setitem(script.DATA_SETS, "coco", small)


def test_a_complete_copy(script, small_coco, tmp_path, capsys):
    write_coco(tmp_path)
    assert script.main(["coco", f"--root={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "http://images.cocodataset.org/zips/train2014.zip" in printed
    assert "train: 1 images, 1 classes" in printed
    assert "val: 1 images, 1 classes" in printed
    assert "PROBLEM" not in printed
    assert printed.endswith("complete\n")


def test_the_pictures_of_2017_are_a_complete_copy_of_2014(script, small_coco, monkeypatch, tmp_path, capsys):
    write_coco(tmp_path)
    for split, number in (("train", 2), ("val", 1)):
        (tmp_path / f"{split}2014" / f"COCO_{split}2014_{3 - number:012d}.jpg").unlink()
        (tmp_path / f"{split}2014").rmdir()
        (tmp_path / f"{split}2017").mkdir()
        (tmp_path / f"{split}2017" / f"{number:012d}.jpg").write_bytes(b"x")
    both = (script.Images(("train2017", "val2017"), 2),)
    monkeypatch.setitem(script.DATA_SETS, "coco", dataclasses.replace(script.DATA_SETS["coco"], instead=both))
    assert script.main(["coco", f"--root={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith("complete\n")
    (tmp_path / "val2017" / "000000000001.jpg").unlink()
    assert script.main(["coco", f"--root={tmp_path}"]) == 1
    assert "1 images, wanted 2" in capsys.readouterr().out


def test_official_counts_are_asked_for(script, tmp_path, capsys):
    write_coco(tmp_path)
    assert script.main(["coco", f"--root={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "train2014: 1 images, wanted 82,783" in printed
    assert "val2014: 1 images, wanted 40,504" in printed
    assert "train: 1 images, wanted 82,081" in printed
    assert "val: 1 images, wanted 40,137" in printed
    assert printed.endswith("incomplete\n")


@pytest.mark.parametrize(
    "name",
    [
        *("coco", "coco2017", "instances", "open_images", "nus_wide", "voc2007", "vg256", "table"),
        *("cifar10_lt", "cifar100_lt", "imagenet_lt", "places_lt", "mnist"),
    ],
)
def test_an_empty_folder_is_explained(script, name, tmp_path, capsys):
    assert script.main([name, f"--root={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("PROBLEM") >= 1
    assert len(printed.split("PROBLEM")) - 1 == len(
        {line for line in printed.splitlines() if "PROBLEM" in line}
    )


def test_a_table(script, tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / f"{split}.jpg").write_bytes(b"x")
        (tmp_path / f"{split}.csv").write_text(f"{split}.jpg,dog\n")
    assert script.main(["table", f"--root={tmp_path}"]) == 0
    (tmp_path / "val.csv").write_text("train.jpg,dog\n")
    assert script.main(["table", f"--root={tmp_path}"]) == 1
    assert "1 images are in both" in capsys.readouterr().out


def test_visual_genome_with_a_vocabulary_elsewhere(script, tmp_path, monkeypatch):
    root, vocabulary = tmp_path / "vg", tmp_path / "names.json"
    (root / "VG_100K").mkdir(parents=True)
    objects = [{"object_id": 1, "names": ["dog"], "x": 0, "y": 0, "w": 1, "h": 1}]
    (root / "objects.json").write_text(json.dumps([{"image_id": n, "objects": objects} for n in range(4)]))
    for number in range(4):
        (root / "VG_100K" / f"{number}.jpg").write_bytes(b"x")
    small = dataclasses.replace(
        script.DATA_SETS["vg256"], images=(script.Images(("VG_100K", "VG_100K_2"), 4),)
    )
    monkeypatch.setitem(script.DATA_SETS, "vg256", small)
    vocabulary.write_text('{"dog": ["dog"]}')
    assert script.main(["vg256", f"--root={root}", f"--vocabulary={vocabulary}"]) == 0
    assert script.main(["vg256", f"--root={root}"]) == 1


def test_archives_are_compared_with_what_is_published(script, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    good = script.Archive("http://example.org/a.zip", 7, f"sha256:{digest}")
    assert good.name == "a.zip"
    assert script.check_archive(path, good) is None
    assert "7 bytes, wanted 8" in script.check_archive(path, dataclasses.replace(good, size=8))
    path.write_bytes(b"CONTENT")
    assert f"wanted {digest}; download it again" in script.check_archive(path, good)
    assert script.check_archive(path, script.Archive("http://example.org/a.zip")) is None


def test_a_truncated_archive_is_a_problem(script, small_coco, tmp_path, capsys):
    write_coco(tmp_path)
    (tmp_path / "val2014.zip").write_bytes(b"x")
    assert script.main(["coco", f"--root={tmp_path}"]) == 1
    assert "val2014.zip: 1 bytes, wanted 6,645,013,297" in capsys.readouterr().out


def test_every_checksum_is_one_that_this_python_can_compute(script):
    published = [a.checksum for d in script.DATA_SETS.values() for a in d.archives if a.checksum]
    assert len(published) == 18
    for checksum in published:
        algorithm, _, digest = checksum.partition(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size


def test_a_damaged_archive_of_cifar(script, tmp_path, capsys):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half of it")
    assert script.main(["cifar10_lt", f"--root={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "md5:c58f30108f718f92721af3b95e74349a" in printed
    assert "10 bytes, wanted 170,498,071; download it again" in printed


def test_lists_are_asked_for_their_official_numbers(script, tmp_path, capsys):
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.jpg").write_bytes(b"x")
        (tmp_path / f"Places_LT_{split}.txt").write_text(f"{split}.jpg 0\n")
    assert script.main(["places_lt", f"--root={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "train: 1 images, wanted 62,500" in printed
    assert "val: 1 images, wanted 7,300" in printed


def test_it_looks_where_training_looks(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CFMLC_DATA", raising=False)
    for place in (tmp_path / "data" / "table", tmp_path / "elsewhere" / "table"):
        place.mkdir(parents=True)
        for split in ("train", "val"):
            (place / f"{split}.jpg").write_bytes(b"x")
            (place / f"{split}.csv").write_text(f"{split}.jpg,dog\n")
    assert script.main(["table"]) == 0
    assert "checking DIR = data/table" in capsys.readouterr().out
    monkeypatch.setenv("CFMLC_DATA", str(tmp_path / "elsewhere"))
    assert build.data_root("table", "") == tmp_path / "elsewhere" / "table"
    assert script.main(["table"]) == 0
    assert f"checking DIR = {tmp_path}/elsewhere/table" in capsys.readouterr().out


def commands():
    """Every `python -m cfmlc_jax.data …` of the documents and the configurations."""
    texts = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("configs/**/*.py")]
    return {
        (path.name, command)
        for path in texts
        for command in re.findall(
            r"python -m cfmlc_jax\.data ([^`#\n]*[^`#\s])", path.read_text(encoding="utf-8")
        )
    }


def test_every_command_that_is_named_can_be_run(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CFMLC_DATA", raising=False)
    named = commands()
    assert {"README.md", "coco.py", "voc2007.py", "vg256.py", "longtail_cifar.py"} <= {
        name for name, _ in named
    }
    for _, command in sorted(named):
        assert script.main(command.split()) == 1
        printed = capsys.readouterr().out
        assert "is not a folder; create it, or give another by --root or $CFMLC_DATA" in printed
        assert printed.endswith("incomplete\n")


@pytest.mark.parametrize("root", ["", "nowhere"])
@pytest.mark.parametrize("name", ["coco", "voc2007", "vg256", "table"])
def test_the_command_that_an_error_names_can_be_run(script, name, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CFMLC_DATA", raising=False)
    with pytest.raises(InputError, match=r"see python -m cfmlc_jax\.data ") as caught:
        build.data_root(name, root)
    _, _, arguments = str(caught.value).partition("cfmlc_jax.data ")
    assert script.main(arguments.split()) == 1
    assert f"PROBLEM {root or f'data/{name}'} is not a folder" in capsys.readouterr().out


def test_both_splits_are_looked_at(script, tmp_path, capsys):
    (tmp_path / "train.csv").write_text("a.jpg,dog\n")
    (tmp_path / "val.csv").write_text("b.jpg,dog\n")
    assert script.main(["table", f"--root={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "train.csv line 1: no image 'a.jpg'" in printed
    assert "val.csv line 1: no image 'b.jpg'" in printed


def test_boxes_that_are_left_out_are_shown_and_no_problem(script, small_coco, tmp_path, capsys):
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2014.json"
    path.write_text(path.read_text().replace("[0, 0, 1, 1]", "[0, 0, -1, 1]"))
    assert script.main(["coco", f"--root={tmp_path}"]) == 0
    assert "boxes left out of localisation: 1, first" in capsys.readouterr().out


def test_mnist(script, tmp_path, monkeypatch, capsys):
    """Its textures and coloured images are optional, and are checked if they are there."""
    mnist_files.accept_small_files(monkeypatch)
    mnist_files.write_mnist(tmp_path)
    rows = {"train": ("train", slice(0, 40)), "val": ("t10k", slice(0, 20))}
    monkeypatch.setattr(mechanism_digits, "_MNIST", rows)
    small = dataclasses.replace(script.DATA_SETS["mnist"], split_sizes=(40, 20))
    monkeypatch.setitem(script.DATA_SETS, "mnist", small)
    assert script.main(["mnist", f"--root={tmp_path}"]) == 0
    assert "its own files" not in capsys.readouterr().out
    mnist_files.write_textures(tmp_path)
    assert script.main(["mnist", f"--root={tmp_path}"]) == 0
    assert "wildlife_mnist: its own files can be read" in capsys.readouterr().out
    next((tmp_path / "textures" / "object").iterdir()).unlink()
    (tmp_path / colored_mnist_file.NAME).write_bytes(b"x")
    assert script.main(["mnist", f"--root={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert "wanted one for each digit" in printed
    assert f"{colored_mnist_file.NAME} cannot be read" in printed


@pytest.mark.parametrize("root", ["gs://bucket/coco", "az://bucket/coco"])
def test_a_copy_in_a_bucket_is_checked_before_it_is_uploaded(script, root, capsys):
    assert script.main(["coco", f"--root={root}"]) == 1
    assert "is an address, not a path on this machine" in capsys.readouterr().err
