"""The training command with one fault in it.

    victim.py FAULT ARGUMENTS

FAULT is JSON of a `Fault`, ARGUMENTS are those of `cfmlc_jax.main`. The files that Python writes, renames and removes in
the workdir are counted by an audit hook, which acts on the n-th: so a run can be hit before every single change of its
files. Files of arrays are written by TensorStore in C++, which the hook does not see; faults at a time hit these.
"""

import contextlib
import errno
import json
import os
import runpy
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

# Events of Python's audit, and which of their arguments is the path that changes.
_CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.link": 1, "os.truncate": 0}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an event of Python's audit is about to change; None: it changes no file."""
    if event == "open":
        path, _, flags = arguments
        if not flags or not flags & _WRITING:
            return None
    elif event in _CHANGES:
        path = arguments[_CHANGES[event]]
    else:
        return None
    return os.fspath(path) if isinstance(path, str | os.PathLike) else None


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and when.

    what: the name of a signal ("SIGKILL"), which the process sends itself; the name of an error ("ENOSPC"), which the
        change of a file raises; "delay", `seconds` of sleep before every change of a file; "clock", by which the clock
        of Python in this process jumps `seconds` forwards or back; "worker", SIGKILL for one of the processes that read
        images, as soon as there is one; or "nothing".
    event: before this change of a file, counted from 0; None: at a time.
    after: seconds from the start of the command.
    repeat: whether an error is raised at every later change, too: a disk that stays full.
    """

    what: str = "nothing"
    event: int | None = None
    after: float | None = None
    seconds: float = 0.0
    repeat: bool = True

    def text(self) -> str:
        """The fault as JSON."""
        return json.dumps(asdict(self))


class Victim:
    """This process: counts its changes of files in a folder, and does the fault when it is time.

    Writes to `note` what the main thread was doing when it was hit, or "{}" if it came to its end unharmed.
    """

    def __init__(self, fault: Fault, folder: str, note: Path):
        self.fault, self.folder, self.note = fault, folder, note
        self.events: list[str] = []
        self.main = threading.main_thread().ident
        self.lock = threading.RLock()
        self.hit = False

    def start(self) -> None:
        """Begin to watch; the clock of `after` starts."""
        if self.fault.after is not None:
            timer = threading.Timer(self.fault.after, self.act)
            timer.daemon = True
            timer.start()
        sys.addaudithook(self.on_event)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a change of a file in the folder, and do the fault if it is the one."""
        path = changed(event, arguments)
        if path is None or not path.startswith(self.folder):
            return
        with self.lock:
            number = len(self.events)
            self.events.append(f"{event} {os.path.relpath(path, self.folder)}")
        of_events = self.fault.event is not None and (
            number == self.fault.event or (number > self.fault.event and self.fault.repeat)
        )
        if of_events or self.fault.what == "delay":
            self.act(os.fspath(path))

    def act(self, path: str | None = None) -> None:
        """Do the fault now."""
        what = self.fault.what
        worker = _await_worker() if what == "worker" else 0
        if not self.hit:
            self.hit = True
            self._write_note({"place": self.place(), "event": self.events[-1] if path else ""})
        if worker:
            os.kill(worker, signal.SIGKILL)
        elif what.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[what])
        elif what == "clock":
            _jump(self.fault.seconds)
        elif what == "delay":
            time.sleep(self.fault.seconds)
        elif path is not None:
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number), path)

    def place(self) -> str:
        """What the main thread is doing: the innermost functions of the package."""
        frame, names = sys._current_frames().get(self.main or 0), []
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.startswith("cfmlc_jax"):
                names.append(f"{module.removeprefix('cfmlc_jax.')}.{frame.f_code.co_name}")
            frame = frame.f_back
        return names[0] if names else "imports"

    def end(self) -> None:
        """Note that the command came to its end, with the number of its changes of files."""
        if not self.hit:
            self._write_note({"events": self.events})

    def _write_note(self, content):
        # Outside the watched folder, in one piece: the process may be killed right after.
        temporary = self.note.with_suffix(".new")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.note)


def _await_worker() -> int:
    """The number of a process that reads images for this one, when there is one. Threads other than the main one start them."""
    while True:
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # a thread or a process that has ended
                for child in (task / "children").read_text().split():
                    if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        time.sleep(0.01)


def _jump(seconds):
    now = time.time
    time.time = lambda: now() + seconds


def main() -> None:
    """Run the command with the fault of the first argument; the note's path is in $CFMLC_FAULT_NOTE."""
    fault = Fault(**json.loads(sys.argv.pop(1)))
    (workdir,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--workdir=")]
    # Of a campaign in the background of a shell the commands would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    victim = Victim(fault, os.path.abspath(workdir), Path(os.environ["CFMLC_FAULT_NOTE"]))
    leave = os._exit

    def leave_noted(status: int) -> NoReturn:
        victim.end()
        leave(status)

    os._exit = leave_noted  # how the command ends (`cli.end`)
    victim.start()
    runpy.run_module("cfmlc_jax.main", run_name="__main__")


if __name__ == "__main__":
    main()
