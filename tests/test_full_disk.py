"""A disk that is full, and other reasons why a file cannot be written: one line, and nothing lost or left."""

import errno
import os

import numpy as np
import pytest

from cfmlc_jax import files
from cfmlc_jax.errors import RunError, WriteError

WRITERS = {
    "text": lambda path: files.write_text(path, "new"),
    "bytes": lambda path: files.write_bytes(path, b"new"),
    "arrays": lambda path: files.write_npz(path, x=np.zeros(3)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("number", "way_out"),
    [(errno.ENOSPC, "free space there"), (errno.EDQUOT, "free space there"), (errno.EIO, "fix that")],
)
def test_a_failed_write_keeps_the_old_file_and_leaves_no_new_one(
    tmp_path, monkeypatch, writer, number, way_out
):
    def full(_):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError) as error:
        WRITERS[writer](path)
    assert isinstance(error.value, RunError)
    assert (error.value.errno, error.value.filename) == (number, str(path))
    message = str(error.value)
    assert message.startswith(f"{path} cannot be written ({os.strerror(number)}); {way_out}")
    assert "\n" not in message
    assert [(child.name, child.read_text()) for child in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize("writer", [*WRITERS, "append"])
def test_a_folder_that_is_gone(tmp_path, writer):
    write = {**WRITERS, "append": lambda path: files.append_text(path, "new")}[writer]
    with pytest.raises(
        WriteError, match=r"nowhere/file cannot be written \(No such file or directory\); fix that"
    ):
        write(tmp_path / "nowhere" / "file")


def test_other_errors_inside_are_not_reported_as_write_errors(tmp_path):
    with pytest.raises(WriteError, match="other/file cannot"), files.replacing(tmp_path / "file"):
        files.write_text(tmp_path / "other" / "file", "")
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "file"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_text_is_appended_in_full_or_not_at_all(small_disk):
    path = small_disk / "lines"
    files.append_text(path, "first\n")
    with pytest.raises(WriteError, match=r"lines cannot be written \(No space left on device\); free space"):
        files.append_text(path, "é" * 400_000 + "\n")
    assert path.read_text() == "first\n"
    files.append_text(path, "second\n")
    assert path.read_text() == "first\nsecond\n"


def test_no_room_for_a_new_file(small_disk):
    with pytest.raises(WriteError, match="No space left on device"):
        files.write_npz(small_disk / "scores.npz", x=np.random.default_rng(0).random(200_000))
    assert list(small_disk.iterdir()) == []
