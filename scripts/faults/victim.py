"""The training command with one fault in it.

    victim.py FAULT ARGUMENTS

FAULT is JSON of a `Fault`, ARGUMENTS are those of `cfmlc_jax.main`. The files that Python writes, renames and removes in
the workdir are counted by an audit hook, which acts on the n-th: so a run can be hit before every single change of its
files. Files of arrays are written by TensorStore in C++, which the hook does not see; faults at a time hit these.
"""

import contextlib
import errno
import functools
import hashlib
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
# Functions of the package, and the phase that a run is in while one of them runs; of nested ones the inner one counts.
_CALLS = {
    "engine.run:Run.resume": "resuming",
    "engine.run:Run.fit": "steps",
    "engine.log:compile_within_memory": "compilation",
    "classify.train:_Training.compile_scores": "compilation",
    "engine.progress:Progress.waiting": "reading",
    "engine.run:Run._validate": "validation",
    "cgn.train:_Training.generate": "records",
    "classify.train:_evaluate_in_full": "evaluation",
    "cgn.classifiers:training_accuracy": "evaluation",
    "report.page:write": "report",
}
_RESTORE = "checkpoint:Checkpoints.restore_latest"
# The others: a checkpoint's folder is there and not renamed, renamed but without its digests; and all the rest.
SAVE, SIGNING, START = "save", "end of a save", "start"
PHASES = (START, *dict.fromkeys(_CALLS.values()), SAVE, SIGNING)
# As in the package, which is imported by the command alone: it must block signals before others start threads.
_UNFINISHED, _DIGESTS = ".orbax-checkpoint-tmp", "digests.json"
_LOOK_SECONDS = 0.002
RESTORED = "restored.json"


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
    if not isinstance(path, str | os.PathLike):
        return None
    path = os.fspath(path)
    folder = arguments[-1]  # `rmtree` removes names in a folder that is open
    if event in ("os.remove", "os.rmdir") and isinstance(folder, int) and folder >= 0:
        with contextlib.suppress(OSError):  # closed in between
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return path


@dataclass(frozen=True)
class Fault:
    """What happens to a run, and when.

    what: the name of a signal ("SIGKILL"), which the process sends itself; the name of an error ("ENOSPC"), which the
        change of a file raises; "delay", `seconds` of sleep before every change of a file; "clock", by which the clock
        of Python in this process jumps `seconds` forwards or back; "worker", SIGKILL for one of the processes that read
        images, as soon as there is one; or "nothing".
    event: before this change of a file, counted from 0; None: in a phase.
    phase: when the run is in this phase, of `PHASES`.
    entry: for the so-manieth time, counted from 0.
    after: for so many seconds; or when it leaves the phase, if that is sooner.
    repeat: whether an error is raised at every later change, too: a disk that stays full.
    group: whether a signal goes to the whole group of processes, as Ctrl-C in a terminal and `timeout` send it.
    """

    what: str = "nothing"
    event: int | None = None
    phase: str = ""
    entry: int = 0
    after: float = 0.0
    seconds: float = 0.0
    repeat: bool = True
    group: bool = False

    def text(self) -> str:
        """The fault as JSON."""
        return json.dumps(asdict(self))


class Victim:
    """This process: notes its changes of files and its phases, and does the fault when it is time.

    Writes to `note` what the main thread was doing when it was hit; at the end of a run that was not hit its changes of
    files in order, and of each phase how long it took each time. Beside the note, in restored.json, are the checkpoints
    that it resumed from: the folder of each, with the digests of the arrays as they are on the devices.
    """

    def __init__(self, fault: Fault, folder: str, note: Path):
        self.fault, self.folder, self.note = fault, folder, note
        self.events: list[str] = []
        self.phases: dict[str, list[float]] = {}
        self.main = threading.main_thread().ident
        self.lock = threading.RLock()
        self.hit = False
        self.restored: dict[str, dict[str, str]] = {}
        self._inside: list[str] = []  # phases of the functions that run, the innermost last
        # A save goes on beside what the main thread does: its phase, and since when; that of the main thread.
        began = time.monotonic()
        self._save, self._own = ("", began), (START, began)
        self._done = False
        self._unwrapped = {**dict.fromkeys(_CALLS, self._in_phase), _RESTORE: self._noting}

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, daemon=True).start()
        sys.addaudithook(self.on_event)

    def _watch(self):
        """Do the fault that comes after some seconds in a phase."""
        # A signal to the process must not come to this thread: the command's own wait for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        while True:
            self._wrap()
            self._look()
            time.sleep(_LOOK_SECONDS)

    def _look(self):
        with self.lock:
            for phase, since in (self._save, self._own):
                if self._is_due(phase) and time.monotonic() - since >= self.fault.after:
                    self._act_once()

    def _is_due(self, phase):
        entry = len(self.phases.get(phase, []))
        return bool(phase) and (phase, entry) == (self.fault.phase, self.fault.entry) and not self._done

    def _act_once(self):
        self._done = True
        self.act()

    def _left(self, phase, since):
        """Note that a phase ends now, and return the time; the fault is done if it waits for that."""
        if self._is_due(phase):
            self._act_once()
        now = time.monotonic()
        if phase:
            self.phases.setdefault(phase, []).append(now - since)
        return now

    def _move(self):
        """Note the main thread's phase, if it is another one now."""
        phase = (self._inside[-1:] or [START])[0]
        with self.lock:
            if phase != self._own[0]:
                self._own = phase, self._left(*self._own)

    def _move_save(self, phase):
        with self.lock:
            self._save = phase, self._left(*self._save)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count a change of a file in the folder, and do the fault if it is the one."""
        path = changed(event, arguments)
        if path is None or not path.startswith(self.folder):
            return
        with self.lock:
            number = len(self.events)
            self.events.append(f"{event} {os.path.relpath(path, self.folder)}")
            self._note_save(event, path, arguments)
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
            self._write_note(
                {"place": f"{self.phase()}: {self._function()}", "event": self.events[-1] if path else ""}
            )
        if worker:
            os.kill(worker, signal.SIGKILL)
        elif what.startswith("SIG"):
            (os.killpg if self.fault.group else os.kill)(os.getpid(), signal.Signals[what])
        elif what == "clock":
            _jump(self.fault.seconds)
        elif what == "delay":
            time.sleep(self.fault.seconds)
        elif path is not None:
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number), path)

    def _wrap(self):
        """Wrap the functions whose modules are imported by now.

        To walk through the main thread's stack every now and then would be simpler, but crashes CPython 3.11 at times.
        """
        for place, wrapper in [*self._unwrapped.items()]:
            module, _, name = place.partition(":")
            *owners, name = name.split(".")
            owner: Any = sys.modules.get(f"cfmlc_jax.{module}")
            for each in owners:
                owner = getattr(owner, each, None)
            if hasattr(owner, name):
                setattr(owner, name, wrapper(place, getattr(owner, name)))
                del self._unwrapped[place]

    def _in_phase(self, place, function):
        @contextlib.contextmanager
        def inside():
            self._inside.append(_CALLS[place])
            self._move()
            try:
                yield
            finally:
                self._inside.pop()
                self._move()

        @functools.wraps(function)
        def call(*arguments, **named):
            if _CALLS[place] != "reading":
                with inside():
                    return function(*arguments, **named)
            waiting = contextlib.ExitStack()
            waiting.enter_context(function(*arguments, **named))
            if "input" in arguments:
                waiting.enter_context(inside())
            return waiting

        return call

    def _noting(self, place, restore):
        @functools.wraps(restore)
        def noted(checkpoints, **arguments):
            restored = restore(checkpoints, **arguments)
            if restored is not None:
                model, training, _ = restored
                folder = os.path.relpath(checkpoints.path(int(training["step"])), self.folder)
                self.restored[folder] = digests_of({"model": model, "training": training})
                self.note.with_name(RESTORED).write_text(json.dumps(self.restored))
            return restored

        return noted

    def _note_save(self, event, path, arguments):
        if event == "os.mkdir" and path.endswith(_UNFINISHED) and _UNFINISHED not in os.path.dirname(path):
            self._move_save(SAVE)
        elif event == "os.rename" and self._save[0]:
            if str(arguments[0]).endswith(_UNFINISHED) and os.path.basename(path).isdecimal():
                self._move_save(SIGNING)
            elif os.path.basename(path) == _DIGESTS:
                self._move_save("")

    def phase(self) -> str:
        """The phase, of `PHASES`, at this moment: that of a save, if there is one."""
        return self._save[0] or self._own[0]

    def _function(self):
        """The innermost function of the package that the main thread is in."""
        frame = sys._current_frames().get(self.main or 0)
        while frame is not None:
            module = frame.f_globals.get("__name__", "")
            if module.startswith("cfmlc_jax"):
                return f"{module.removeprefix('cfmlc_jax.')}.{frame.f_code.co_name}"
            frame = frame.f_back
        return "imports"

    def end(self) -> None:
        """Note that the command came to its end without a fault."""
        if not self.hit:
            with self.lock:
                self._left(*self._own)
                self._write_note({"events": self.events, "phases": self.phases})

    def _write_note(self, content):
        # Outside the watched folder, in one piece: the process may be killed right after.
        temporary = self.note.with_suffix(".new")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self.note)


def digests_of(tree: Any) -> dict[str, str]:
    """The digest of each array of a tree, NumPy's or on devices, by its place."""
    import jax
    import numpy as np

    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        # Of several processes each has all of an array that is not split.
        shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        value = np.asarray(leaf.addressable_data(0) if shared else leaf)
        content = f"{value.dtype} {value.shape} ".encode() + value.tobytes()
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = hashlib.sha256(content).hexdigest()
    return found


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
