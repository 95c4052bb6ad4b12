"""What is no file of a photo's size is refused before it is read, wherever pictures are read."""

import os

import fsspec
import pytest
from PIL import Image

from cfmlc_jax import buckets
from cfmlc_jax.check import files as check
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.views import picture_files
from cfmlc_jax.errors import InputError
from cfmlc_jax.predict import photos


def source(root, name):
    (root / "train.csv").write_text(f"{name},dog\n")
    return Table(root, "train")


@pytest.fixture
def large(tmp_path):
    """A file that takes no room on the disk, one byte above the limit."""
    path = tmp_path / "large.jpg"
    path.touch()
    os.truncate(path, picture_files.MAX_BYTES + 1)
    return path


def test_a_training_picture_above_a_gigabyte_is_not_read(tmp_path, large, monkeypatch):
    train = source(tmp_path, large.name)
    monkeypatch.setattr(picture_files, "open", None, raising=False)
    with pytest.raises(InputError, match=rf"^{large}: 1073741825 bytes are more than 1073741824; scale"):
        train[0]


def test_a_check_reports_it(large):
    assert check.read(str(large)).error.startswith(f"{large}: 1073741825 bytes are more than")
    assert check.thumbnail(str(large)) is None


def test_a_prediction_reports_it(large):
    (error,) = photos.read([str(large)], None, contents={}, threads=1, where=str, keep=None)
    assert str(error).startswith(f"{large}: 1073741825 bytes are more than")


def test_a_picture_of_the_limit_is_read(tmp_path, monkeypatch):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(picture_files, "MAX_BYTES", len(content))
    assert source(tmp_path, "a.png")[0]["image"] == content


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_never_ends_is_not_read(tmp_path, kind):
    if kind == "device":
        (tmp_path / "a.jpg").symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "a.jpg").symlink_to("pipe")
    with pytest.raises(InputError, match=r"a\.jpg: not a regular file; copy"):
        source(tmp_path, "a.jpg")[0]


def test_a_large_object_of_a_bucket_is_refused(monkeypatch):
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/a.jpg", bytes(9))
    monkeypatch.setattr(buckets, "filesystem", lambda scheme: system)
    monkeypatch.setattr(picture_files, "MAX_BYTES", 8)
    with pytest.raises(InputError, match=r"^s3://bucket/a\.jpg: 9 bytes are more than 8; scale"):
        picture_files.read_anywhere("s3://bucket/a.jpg")
