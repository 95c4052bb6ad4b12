"""A lock on a folder for one process at a time, released when its holder ends.

It is the operating system's lock on an open file, which is released even if the process is killed. The file
itself names the holder: for messages, and for file systems without locks or with locks that hosts do not share.

A bucket has no such locks. There the lock is an object, which only one of several processes can create. Its holder puts
it again every now and then, and one that has not for minutes counts as dead.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from cfmlc_jax import cli, files
from cfmlc_jax.buckets import Address
from cfmlc_jax.errors import InputError, WriteError

FILE = ".lock"
SECONDS_BETWEEN_TRIES = 1.0
SECONDS_BETWEEN_BEATS = 20.0  # after which the holder of a lock in a bucket puts it again
SECONDS_OF_SILENCE = 180.0  # after which such a holder on another host counts as dead


# No second of this or any other epoch is larger.
_FARTHEST = 1e15
_FIELDS = ("host", "pid", "started", "since", "doing")


class InUseError(InputError):
    """Another process that is still running holds the lock."""


@contextlib.contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock for the duration of the block; what killed holders have left of files is removed first.

    It is also released if a signal ends the process.

    Args:
        folder: an existing folder, or one in a bucket.
        doing: what the lock is held for, for example "training"; other processes print it.

    Raises:
        InUseError: another process holds the lock.
        InputError: a process on another host may hold it; this host cannot know whether it still runs.
        WriteError: the folder cannot be written.
    """
    path = folder / FILE
    take: Callable[..., _Object | _OpenFile] = _take_in_bucket if isinstance(path, Address) else _take
    try:
        lock = take(path, doing)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from error
    try:
        if not isinstance(folder, Address):
            files.remove_temporary(folder)
        with cli.if_interrupted(lock.release):
            yield
    finally:
        with contextlib.suppress(OSError):  # a file that stays behind names a process that has ended
            lock.release()


class _OpenFile:
    """A lock that is held on an open file."""

    def __init__(self, path: Path, file: TextIO):
        self._path, self._file = path, file

    def release(self) -> None:
        if self._file.closed:  # a signal, which ends the process, has released it
            return
        try:
            if _is_still(self._path, self._file):
                self._path.unlink()
        finally:
            self._file.close()


class _Object:
    """A lock that is held by an object in a bucket, which names its holder and is put again every now and then."""

    def __init__(self, address: Address, holder: dict[str, Any]):
        self._address, self._holder = address, holder
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self):
        while not self._released.wait(SECONDS_BETWEEN_BEATS):
            # Without a network the run's own writes fail, which is reported there.
            with contextlib.suppress(OSError):
                now = _holder_in(self._address)
                if now is not None and now["token"] != self._holder["token"]:
                    # This process was silent for so long that another one writes there now: both must not.
                    print(
                        f"error: {self._address.parent} was taken over by {_described(now)}", file=sys.stderr
                    )
                    cli.end(1)
                self._address.replace_by(_as_json(self._holder | {"beat": time.time()}))

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        now = _holder_in(self._address)
        if now is not None and now["token"] == self._holder["token"]:
            self._address.unlink()


def _take_in_bucket(address: Address, doing: str) -> _Object:
    """Take the lock: the object is put, with this process written in it as the holder."""
    own = _self(doing) | {"token": uuid.uuid4().hex, "beat": time.time()}
    # Looked at first, because some servers put an object although there is one.
    holder = _holder_in(address)
    if holder is not None or not address.create(_as_json(own)):
        holder = _holder_in(address)
        if holder is not None:
            _require_dead(address, holder)
        # Several processes may find the same dead holder: the last one that signs has the lock.
        address.replace_by(_as_json(own))
        time.sleep(SECONDS_BETWEEN_TRIES)
        now = _holder_in(address)
        if now is None or now["token"] != own["token"]:
            raise _in_use(address, now)
    return _Object(address, own)


def _require_dead(address, holder):
    """Raise unless the holder of a lock in a bucket has ended."""
    # A host without /proc does not know when its processes started: there, silence decides.
    if holder["host"] == socket.gethostname() and holder["started"] is not None:
        if _runs(holder):
            raise _in_use(address, holder)
        return
    if _started_again(holder["job"]):
        return
    silent = time.time() - holder["beat"]
    if silent > SECONDS_OF_SILENCE:
        time.sleep(2 * SECONDS_BETWEEN_BEATS)  # the clocks of hosts may differ
        now = _holder_in(address)
        if now is not None and now["beat"] != holder["beat"]:
            raise _in_use(address, now)
    else:
        raise InUseError(
            f"{address.parent} is in use by {_described(holder)}, heard of {max(0, silent):.0f} s ago; wait until it "
            f"ends: it counts as ended after {SECONDS_OF_SILENCE:.0f} s of silence, or remove {address}; or choose "
            "another --workdir"
        )


def _holder_in(address) -> dict[str, Any] | None:
    """The holder written in an object; None without an object, or if it names none."""
    try:
        holder = json.loads(address.read_bytes())
        return _checked({name: holder[name] for name in (*_FIELDS, "token", "beat")}) | {
            "job": holder.get("job")
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _as_json(holder):
    return (json.dumps(holder) + "\n").encode()


def _take(path, doing) -> _OpenFile:
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
        file.truncate(0)
        file.write(json.dumps(_self(doing)) + "\n")
        file.flush()
    except BaseException:
        file.close()
        raise
    return _OpenFile(path, file)


def _self(doing) -> dict[str, Any]:
    """This process as a holder."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "doing": doing,
        "job": _job(),
    }


def _holder(file) -> dict[str, Any] | None:
    """The holder written in the file; None if a holder was killed before it wrote."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return _checked({name: holder[name] for name in _FIELDS}) | {
            "job": holder.get("job")
        }  # older versions wrote none
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _checked(holder):
    """The holder, if its numbers are numbers.

    Raises:
        TypeError: they are not.
    """
    started, beat = holder["started"], holder.get("beat", 0.0)
    if type(holder["pid"]) is not int or not isinstance(started, int | None):
        raise TypeError("the process or its start is no number")
    if not isinstance(beat, int | float) or not abs(beat) < _FARTHEST:
        raise TypeError("the beat is no time")
    return holder


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
