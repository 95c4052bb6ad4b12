"""One process at a time in a folder: a lock that ends with its holder.

The operating system's lock of an open file, which a killed process gives back too; and in the file who holds
it, for those who meet it, and for file systems that know no locks or do not share them between hosts.
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
    """Another process holds the lock, and is alive."""


@contextlib.contextmanager
def held(folder: Path, doing: str, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Inside, no other process holds the folder's lock.

    Args:
        folder: is there.
        doing: what for, "training" say, told to others.
        wait: given, wait for the holder, and call this with who it is before every try.

    Raises:
        InUseError: another process holds it.
        InputError: one on another host may hold it, which cannot be seen from this one.
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
        with contextlib.suppress(OSError):  # what is left there is a dead holder's
            if _is_still(path, file):
                path.unlink()
        file.close()


def _take(path, doing) -> TextIO:
    """The lock's file, open and with this process as its holder."""
    file = path.open("a+", encoding="utf-8")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise _in_use(path, _holder(file)) from None
        except OSError:  # a file system without locks: what the file says must do
            locked = False
        if locked and not _is_still(path, file):  # its holder ended and removed it just now
            file.close()
            return _take(path, doing)
        holder = _holder(file)
        if holder and holder["host"] != socket.gethostname():
            raise InputError(
                f"{path.parent} was taken by {_described(holder)}, and whether that still runs cannot be seen from "
                f"{socket.gethostname()}; if it does not, remove {path}, else take another --workdir"
            )
        if holder and _runs(holder):
            raise _in_use(path, holder)
        _sign(file, doing)
    except BaseException:
        file.close()
        raise
    return file


def _sign(file, doing):
    """Write down who holds the lock."""
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "doing": doing,
    }
    file.truncate(0)
    file.write(json.dumps(holder) + "\n")
    file.flush()


def _holder(file) -> dict[str, Any] | None:
    """Who signed the file; None where a holder was killed before it had."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return {name: holder[name] for name in ("host", "pid", "started", "since", "doing")}
    except (ValueError, KeyError, TypeError):
        return None


def _in_use(path, holder):
    who = "another process" if holder is None else _described(holder)
    return InUseError(f"{path.parent} is in use by {who}; let that end, or take another --workdir")


def _described(holder):
    return f"process {holder['pid']} on {holder['host']} ({holder['doing']} since {holder['since']})"


def _runs(holder):
    """Whether the process on this host that signed still runs, and the number is not another's by now."""
    return holder["started"] is not None and _started(holder["pid"]) == holder["started"]


def _started(pid):
    """When a process started, in ticks since the machine did; None for one that has ended, or without /proc."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _is_still(path, file):
    """Whether the open file is the one at the path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
