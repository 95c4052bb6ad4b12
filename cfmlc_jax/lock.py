"""A lock on a folder for one process at a time, released when its holder ends.

It is the operating system's lock on an open file, which is released even if the process is killed. The file
itself names the holder: for messages, and for file systems without locks or with locks that hosts do not share.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from cfmlc_jax.errors import InputError, WriteError

FILE = ".lock"
SECONDS_BETWEEN_TRIES = 1.0


class InUseError(InputError):
    """Another process that is still running holds the lock."""


@contextlib.contextmanager
def held(folder: Path, doing: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the folder's lock for the duration of the block.

    Args:
        folder: an existing folder.
        doing: what the lock is held for, for example "training"; other processes print it.
        wait: if set, wait for the holder, and call this with a line that names it before every try.

    Raises:
        InUseError: another process holds the lock.
        InputError: a process on another host may hold it; this host cannot know whether it still runs.
        WriteError: the folder cannot be written.
    """
    path = folder / FILE
    while True:
        try:
            file = _take(path, doing)
            break
        except InUseError as error:
            if wait is None:
                raise
            wait(str(error))
            time.sleep(SECONDS_BETWEEN_TRIES)
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(path)) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a file that stays behind names a process that has ended
            if _is_still(path, file):
                path.unlink()
        file.close()


def _take(path, doing) -> TextIO:
    """Take the lock: its open file, with this process written in it as the holder."""
    file = path.open("a+", encoding="utf-8")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise _in_use(path, _holder(file)) from None
        except OSError:  # a file system without locks: only the file's content says who holds it
            locked = False
        if locked and not _is_still(path, file):  # the holder ended just now and removed the file
            file.close()
            return _take(path, doing)
        holder = _holder(file)
        if holder and holder["host"] != socket.gethostname() and not _started_again(holder["job"]):
            raise InputError(
                f"{path.parent} was locked by {_described(holder)}, and {socket.gethostname()} cannot see whether "
                f"that process still runs; if it has ended, remove {path}; otherwise choose another --workdir"
            )
        if holder and _runs(holder):
            raise _in_use(path, holder)
        _sign(file, doing)
    except BaseException:
        file.close()
        raise
    return file


def _sign(file, doing):
    """Write this process into the lock's file as its holder."""
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "doing": doing,
        "job": _job(),
    }
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _holder(file) -> dict[str, Any] | None:
    """The holder written in the file; None if a holder was killed before it wrote."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        fields = {name: holder[name] for name in ("host", "pid", "started", "since", "doing")}
        return fields | {"job": holder.get("job")}  # older versions wrote none
    except (ValueError, KeyError, TypeError):
        return None


def _job() -> list | None:
    """[cluster and number of SLURM's job, how often it was started again]; None outside of SLURM."""
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        return None
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return [
        f"{os.environ.get('SLURM_CLUSTER_NAME', '')} {number}",
        int(restarts) if restarts.isdecimal() else 0,
    ]


def _started_again(job):
    """Whether the holder has ended because SLURM has since started its job again, on other hosts: this job."""
    match job, _job():
        case [str(then), int(before)], [now, after] if then == now:
            return before < after
    return False


def _in_use(path, holder):
    who = "another process" if holder is None else _described(holder)
    return InUseError(f"{path.parent} is in use by {who}; wait until it ends, or choose another --workdir")


def _described(holder):
    return f"process {holder['pid']} on {holder['host']} ({holder['doing']} since {holder['since']})"


def _runs(holder):
    """Whether the holder, a process on this host, still runs; a reused process number does not count."""
    return holder["started"] is not None and _started(holder["pid"]) == holder["started"]


def _started(pid):
    """Start time of a process in ticks since boot; None if it has ended or there is no /proc."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _is_still(path, file):
    """Whether the open file is still the file at the path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
