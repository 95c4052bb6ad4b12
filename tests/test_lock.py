"""The lock of a folder: one holder, and none that is dead."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from cfmlc_jax import cli, lock
from cfmlc_jax.errors import InputError, WriteError

HOLDER = """
import sys, time
from pathlib import Path
from cfmlc_jax import cli, lock
with lock.held(Path(sys.argv[1]), "training"):
    print("held", flush=True)
    time.sleep(60)
"""


def sign(folder, **changes):
    """Leave the lock of a holder that was killed."""
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": 1,
        "since": "then",
        "doing": "training",
    }
    (folder / lock.FILE).write_text(json.dumps(holder | changes) + "\n")


def take(folder):
    with lock.held(folder, "training"):
        return json.loads((folder / lock.FILE).read_text())


def test_one_holder_at_a_time_and_no_file_remains(tmp_path):
    with lock.held(tmp_path, "training"):
        with pytest.raises(lock.InUseError) as error:
            take(tmp_path)
        assert str(error.value).startswith(
            f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} (training since 20"
        )
        assert str(error.value).endswith("; wait until it ends, or choose another --workdir")
        with lock.held(tmp_path.parent, "evaluating"):
            pass  # another folder is free
    assert take(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_signed_yet(tmp_path):
    """The system's lock alone keeps others out while the file is empty."""
    with lock.held(tmp_path, "training"):
        signed = (tmp_path / lock.FILE).read_text()
        (tmp_path / lock.FILE).write_text("")
        with pytest.raises(lock.InUseError, match="is in use by another process; wait"):
            take(tmp_path)
        (tmp_path / lock.FILE).write_text(signed)
    assert take(tmp_path)["pid"] == os.getpid()


def test_a_holder_that_ends_between_the_opening_and_the_locking(tmp_path, monkeypatch):
    """Its file is gone then: who locks that one must not keep out others by it, nor let them in."""
    flock, opened = fcntl.flock, []

    def lock_too_late(file, operation):
        opened.append(file)
        if len(opened) == 1:
            (tmp_path / lock.FILE).unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with lock.held(tmp_path, "training"):
        assert len(opened) == 2
        assert opened[0].closed
        with pytest.raises(lock.InUseError, match=f"process {os.getpid()} on"):
            take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_releases_the_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(lock.InUseError, match=f"process {holder.pid} on"):
            take(tmp_path)
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / lock.FILE).exists()
    assert take(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"host": "a"}', "\x00" * 9],
    ids=["empty", "cut", "list", "null", "part", "zeros"],
)
def test_a_holder_that_was_killed_while_it_signed(tmp_path, text):
    (tmp_path / lock.FILE).write_text(text)
    assert take(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("changes", [{"pid": "\x00"}, {"pid": "self/../x"}, {"pid": 1.5}, {"started": [1]}])
def test_a_holder_that_is_no_process(tmp_path, changes):
    sign(tmp_path, **changes)
    assert take(tmp_path)["pid"] == os.getpid()


def test_a_reused_process_id_does_not_hold_the_lock(tmp_path):
    sign(tmp_path, pid=os.getppid())
    assert take(tmp_path)["pid"] == os.getpid()


def test_another_host_cannot_be_seen(tmp_path):
    sign(tmp_path, host="elsewhere", pid=7)
    with pytest.raises(InputError) as error:
        take(tmp_path)
    assert "was locked by process 7 on elsewhere (training since then)" in str(error.value)
    assert f"remove {tmp_path / lock.FILE}" in str(error.value)
    (tmp_path / lock.FILE).unlink()
    assert take(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("job", "restarts", "taken"),
    [
        (["tron 17", 0], "1", True),
        (["tron 17", 1], "1", False),  # another step of the same job
        (["tron 17", 0], "", False),
        (["tron 18", 0], "1", False),
        (["tron 17", "0"], "1", False),
        (None, "1", False),
    ],
)
def test_a_job_that_slurm_started_again_elsewhere_takes_its_lock(tmp_path, monkeypatch, job, restarts, taken):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "tron")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    sign(tmp_path, host="elsewhere", job=job)
    if taken:
        assert take(tmp_path)["job"] == ["tron 17", int(restarts)]
        return
    with pytest.raises(InputError, match="was locked by process"):
        take(tmp_path)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are looked up in /proc")
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    own = take(tmp_path)
    with lock.held(tmp_path, "training"), pytest.raises(lock.InUseError):
        take(tmp_path)
    dead = subprocess.Popen(["sleep", "60"])
    started = lock._started(dead.pid)
    sign(tmp_path, pid=dead.pid, started=started)
    with pytest.raises(lock.InUseError, match=f"process {dead.pid} "):
        take(tmp_path)
    dead.kill()
    # Dead, though nobody has asked how it ended yet.
    while lock._started(dead.pid) is not None:
        time.sleep(0.01)
    taken = take(tmp_path)
    assert taken | {"since": own["since"]} == own
    dead.wait()
    assert take(tmp_path)["pid"] == own["pid"]


def test_a_lock_that_the_user_removed_is_not_removed_again(tmp_path):
    with lock.held(tmp_path, "training"):
        (tmp_path / lock.FILE).unlink()
        with lock.held(tmp_path, "training"):
            pass
        sign(tmp_path, host="elsewhere")
    assert (tmp_path / lock.FILE).exists()


def test_a_signal_that_ends_the_process_releases_its_lock_alone(tmp_path):
    with lock.held(tmp_path, "training"):
        (release,) = cli._in_contexts
        release()
        assert take(tmp_path)["pid"] == os.getpid()
        sign(tmp_path, host="elsewhere")
        release()
    assert cli._in_contexts == []
    assert (tmp_path / lock.FILE).exists()


def test_an_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/\.lock cannot be written \(Not a directory\)"):
        take(tmp_path / "file")
