"""Paths that users give: what they mean, and which of them cannot be used."""

import argparse
import contextlib
import errno
import gc
import os
import socket
import stat
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import cli, files, lock
from cfmlc_jax.errors import InputError, WriteError
from cfmlc_jax.predict import __main__ as predict

BUCKETS = ("gs://bucket/run", "s3://b", "gs:/bucket")
NOBODYS = ("file:///run", "https://host/a.npz", "hf://org/model", "az://bucket", "hdfs:/run", "memory://run")


@pytest.mark.parametrize("address", [*BUCKETS, *NOBODYS])
def test_addresses_are_refused_as_paths(address):
    for path in (address, Path(address)):
        with pytest.raises(InputError, match=r"--there .* is an address, not a path on this machine"):
            files.place(path, "--there")


@pytest.mark.parametrize("address", NOBODYS)
def test_addresses_that_nobody_serves_are_refused_where_buckets_are_not(address):
    for path in (address, Path(address)):
        with pytest.raises(
            InputError, match="give a local or mounted folder, or an address in a bucket, gs:// or s3://"
        ):
            files.place(path, "--there", bucket=True)
        with pytest.raises(InputError, match="is an address"):
            files.path_of(path)


@pytest.mark.parametrize(
    "text", ["a b ", " a", "exp[1]", "a:b", "C:/x", "日本", "-x", "a%20b", "{a,b}", "..."]
)
def test_odd_names_are_paths(text):
    assert files.place(text, "--there") == Path(text)


def test_home_is_resolved(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert files.place("~/runs/a", "--there") == Path("/home/me/runs/a")


def test_a_path_that_may_not_be_looked_at(monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(InputError, match=r"--there '/there/x' cannot be used \(Permission denied\)"):
        files.place("/there/x", "--there")


@cases(500)
@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_is_a_path_or_refused(text):
    try:
        files.place(text, "--there")
    except InputError as error:
        line = str(error)
        assert_one_line(line)


def assert_one_line(line):
    assert len(line.splitlines()) == 1
    assert line.startswith("--there ")


def test_checkpoints_are_not_saved_where_they_could_not_be_read(tmp_path, monkeypatch):
    """Orbax takes a folder's name for a pattern; also that of the folder above, where the command is run."""
    model = {"variables": {"params": {"w": jnp.ones(3)}}, "average": {"params": {"w": jnp.ones(3)}}}
    meta = {"config": {}, "class_names": ["a"], "num_classes": 1}
    (tmp_path / "sweep[1]").mkdir()
    monkeypatch.chdir(tmp_path / "sweep[1]")
    with pytest.raises(
        InputError, match=r"sweep\[1\]/run' has '\[' in it, so checkpoints saved there could not be"
    ):
        checkpoints.write(Path("run"), model=model, meta=meta)
    monkeypatch.chdir(tmp_path)
    for name in ("a*", "b?", "[c", "d\\e"):
        with pytest.raises(
            InputError, match="could not be read; choose a path of printable text without any of"
        ):
            checkpoints.write(Path(name), model=model, meta=meta)
    # What was saved elsewhere can be read there; so can what only looks odd.
    for name in ("a]", "{b,c}", "lr=0.1, x "):
        checkpoints.write(Path(name), model=model, meta=meta)
        os.rename(name, f"{name}[0]")
        variables = checkpoints.read_model(checkpoints.find(Path(f"{name}[0]")), model)
        np.testing.assert_array_equal(variables["average"]["params"]["w"], np.ones(3))


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ("az://bucket/run", "is an address"),
        ("a\\b", "has a backslash in it"),
        (300 * "x", "File name too long"),
    ],
)
def test_a_checkpoint_to_predict_with(checkpoint, words, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert predict.main([str(tmp_path / "a.png"), f"--checkpoint={checkpoint}"]) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert files.user_cache("xla") == Path("/elsewhere/cfmlc_jax/xla")
    monkeypatch.setenv("HOME", "/home/someone")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert files.user_cache("xla") == Path("/home/someone/.cache/cfmlc_jax/xla")


def test_the_cache_may_be_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("CFMLC_CACHE", "mine")
    assert files.user_cache("xla") == tmp_path / "mine" / "xla"


def test_files_written_leave_nothing_to_do_at_an_interrupt(tmp_path):
    with files.replacing(tmp_path / "a") as file:
        file.write("x")
        (remove,) = cli._in_contexts
    assert cli._in_contexts == []
    with pytest.raises(KeyError), files.replacing(tmp_path / "b"):
        raise KeyError
    assert cli._in_contexts == []
    remove()  # once more, as when the interrupt comes in between
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_written_file_and_its_name_are_on_the_disk(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def recorded(handle):
        fsync(handle)
        synced.append((os.fstat(handle).st_ino, (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", recorded)
    files.write_text(tmp_path / "file", "text")
    assert synced == [((tmp_path / "file").stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_synced(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    expected = pytest.raises(WriteError) if number == errno.EIO else contextlib.nullcontext()
    with expected:
        files.write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def written_by(monkeypatch, path, host, pid):
    """The file that a process leaves which is killed while it writes."""
    with monkeypatch.context() as process:
        process.setattr(socket, "gethostname", lambda: host)
        process.setattr(os, "getpid", lambda: pid)
        left = files.temporary(path)
    left.parent.mkdir(exist_ok=True)
    left.touch()
    return left


def test_what_killed_processes_left_is_removed(tmp_path, monkeypatch):
    here, killed, config = socket.gethostname(), 99999999, tmp_path / "config.json"
    (tmp_path / ".notes.tmp").touch()  # a user's
    parents = written_by(monkeypatch, config, here, os.getppid())
    # On another host that number may be of a process that is writing.
    elsewhere = written_by(monkeypatch, tmp_path / "report" / "results.json", "elsewhere", killed)
    written_by(monkeypatch, tmp_path / "report" / "results.json", here, killed)
    written_by(monkeypatch, config, here, os.getpid())
    old = written_by(monkeypatch, config, "elsewhere", os.getppid())
    os.utime(old, (0, time.time() - 2 * 3600))
    with lock.held(tmp_path, "training"):
        left = {path for path in tmp_path.rglob(".*")}
    assert left == {tmp_path / ".notes.tmp", parents, elsewhere, tmp_path / lock.FILE}


def test_homes_are_resolved_and_unknown_ones_told(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for resolve in (files.path_of, files.local_path, files.any_path):
        assert resolve("~/pictures") == Path("/home/someone/pictures")
    unknown = r"'~nobody-at-all/x' begins with the home of an unknown user; give the full path$"
    with pytest.raises(InputError, match=f"^path {unknown}"):
        files.path_of("~nobody-at-all/x")
    with pytest.raises(InputError, match=f"^config\\.data\\.root {unknown}"):
        files.place("~nobody-at-all/x", "config.data.root")
    with pytest.raises(argparse.ArgumentTypeError, match=unknown):
        files.local_path("~nobody-at-all/x")
    monkeypatch.setenv(files.CACHE_VARIABLE, "~nobody-at-all/x")
    with pytest.raises(InputError, match=rf"^\$CFMLC_CACHE {unknown}"):
        files.user_cache("xla")


def test_threads_read_arrays_at_the_same_time(tmp_path):
    # Before Python 3.11.8 two threads that parse a header fail at times, when one collects garbage while it does.
    path, read = tmp_path / "array.npy", []
    files.write_npy(path, np.eye(3))

    def pause(*_, sleep=time.sleep):
        sleep(1e-5)

    def read_many():
        for _ in range(1000):
            files.read_npy(path)
        read.append(True)

    threads = [threading.Thread(target=read_many) for _ in range(4)]
    before = gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(pause)
    assert len(read) == len(threads)
