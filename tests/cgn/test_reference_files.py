"""Records in the forms that the reference's classifiers read, read as they read them."""

import builtins
import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.cgn import __main__ as command
from cfmlc_jax.cgn import reference_files
from cfmlc_jax.data.sources import counterfactuals
from cfmlc_jax.errors import InputError

NAMES = tuple(f"digit {digit}" for digit in range(10))
COUNT = 12


def written(folder, *, encoding="png", **origin):
    """Smooth random images, so that JPEG changes them little, and their labels."""
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (COUNT * 4, 4, 3)).astype(np.uint8))
    images = np.asarray(small.resize((32, COUNT * 32), Image.Resampling.BICUBIC)).reshape(COUNT, 32, 32, 3)
    labels = random.integers(0, 10, (COUNT, 3))
    folder.mkdir()
    path = folder / counterfactuals.shard_name(0, 1)
    counterfactuals.write_shard(path, images, labels, encoding=encoding)
    counterfactuals.write_index(folder, class_names=NAMES, shards=[COUNT], image_size=32, **origin)
    return images, labels


def export(folder, out, *flags):
    return command.main(["export", f"--records={folder}", f"--out={out}", *flags])


@pytest.mark.parametrize(
    ("data", "flags", "name"),
    [
        ("double_colored_digits", [], "double_colored_MNIST"),
        ("wildlife_mnist", [], "wildlife_MNIST"),
        ("own", ["--name=colored_MNIST"], "colored_MNIST"),
    ],
)
def test_tensors_are_those_of_the_reference(tmp_path, capsys, data, flags, name):
    torch = pytest.importorskip("torch", reason="the file is PyTorch's")
    images, labels = written(tmp_path / "records", data=data)
    assert export(tmp_path / "records", tmp_path / "out", *flags) == 0
    path = tmp_path / "out" / f"{name}_counterfactual.pth"
    assert f"{path}: 12 images" in capsys.readouterr().out
    # As mnists/dataloader.py: TensorDataset(*tensor[:2]).
    x, y = torch.utils.data.TensorDataset(*torch.load(path)[:2])[:]
    assert (x.dtype, tuple(x.shape), y.dtype) == (torch.float32, (COUNT, 3, 32, 32), torch.int64)
    np.testing.assert_array_equal(np.rint((x.numpy() + 1) * 127.5), images.transpose(0, 3, 1, 2))
    assert y.tolist() == labels[:, 0].tolist()


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_photos_have_the_names_and_columns_of_the_reference(tmp_path, encoding):
    images, labels = written(tmp_path / "records", encoding=encoding)
    assert export(tmp_path / "records", tmp_path / "out", "--layout=photos", "--name=train_digits") == 0
    folder = tmp_path / "out" / "train_digits"
    # As imagenet/dataloader.py: read_csv(…, index_col=0), then sub/ims/<im_name>_x_gen.jpg.
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["", "im_name", "shape_cls", "texture_cls", "bg_cls"]
    columns = [[int(row[name]) for name in ("shape_cls", "texture_cls", "bg_cls")] for row in rows]
    assert columns == labels.tolist()
    assert rows[3]["im_name"] == "train_digits_0000003"
    assert len(list((folder / "ims").iterdir())) == COUNT
    for row, image in zip(rows, images):
        with Image.open(folder / "ims" / f"{row['im_name']}_x_gen.jpg") as photo:
            assert photo.format == "JPEG"
            assert np.abs(np.asarray(photo).astype(int) - image).mean() < 4


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        (
            "own",
            [],
            "--name=: the reference's classifier of digits knows colored_MNIST, double_colored_MNIST, wildl",
        ),
        ("own", ["--name=mnist"], "(the records are of data 'own'); give one of these, or --layout=photos"),
        (
            "own",
            ["--layout=photos", "--name=test"],
            "--name=test: the reference reads folders whose names begin with",
        ),
        ("own", ["--layout=photos", "--name=train/a"], "--name=train/a: the reference reads folders"),
        ("own", ["--layout=csv"], "argument --layout: invalid choice: 'csv'"),
    ],
)
def test_wrong_flags_are_reported_in_a_line(tmp_path, capsys, data, flags, message):
    written(tmp_path / "records", data=data)
    assert export(tmp_path / "records", tmp_path / "out", *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "name"),
    [([], "wildlife_MNIST_counterfactual.pth"), (["--layout=photos"], "train")],
)
def test_existing_files_are_kept(tmp_path, capsys, flags, name):
    written(tmp_path / "records", data="wildlife_digits")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert export(tmp_path / "records", tmp_path / "out", *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} exists already; remove it, or give another --out or --name" in line
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_a_missing_folder_of_records_is_reported(tmp_path, capsys):
    assert export(tmp_path / "nowhere", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere is not a folder of generated records" in line


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    written(tmp_path / "records", data="colored_digits")
    original = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    records = counterfactuals.Counterfactuals(tmp_path / "records")
    with pytest.raises(InputError, match=r"PyTorch is needed to write .*: pip install 'cfmlc_jax\[torch\]'"):
        reference_files.write_tensors(records, Path(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
