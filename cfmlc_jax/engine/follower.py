"""Passes a run's metrics on to a tracker without ever making the run wait, and without losing or doubling a line."""

import collections
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cfmlc_jax import files
from cfmlc_jax.engine.trackers import FAILED, FINISHED, PREEMPTED, Tracker
from cfmlc_jax.engine.writers import finite

# Order of what belongs to one step.
_LOG, _VALIDATION, _IMAGES, _RESULTS = range(4)
# Seconds between two attempts to reach a tracker that is down.
RETRY_SECONDS = 30.0
# Seconds for what is pending when a run ends: a scheduler or other processes may wait for one that ends early.
CLOSE_SECONDS = {FINISHED: 60.0, PREEMPTED: 10.0, FAILED: 10.0}


class Record:
    """What a workdir knows about its run in a tracker, in a file: the run's id, and how far the tracker has it.

    Attributes:
        id: of the run in the tracker; None: there is none yet.
        sent: (step, order within the step) of the last thing that the tracker has.
    """

    def __init__(self, path: Path):
        self._path = path
        self.id: str | None = None
        self.sent = (-1, 0)
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                self.id, self.sent = str(stored["id"]), (int(stored["sent"][0]), int(stored["sent"][1]))
            except (OSError, ValueError, TypeError, LookupError, RecursionError):  # the file is damaged
                self.forget()

    def forget(self) -> None:
        """Begin with a new run in the tracker."""
        self.id, self.sent = None, (-1, 0)

    def write(self) -> None:
        """Store both.

        Raises:
            WriteError: the file cannot be written.
        """
        self._path.parent.mkdir(exist_ok=True)
        files.write_text(self._path, json.dumps({"id": self.id, "sent": self.sent}) + "\n")


class _Item(NamedTuple):
    """A call of a tracker, and its place in the order of all calls."""

    position: tuple[int, int]
    call: Callable[[Tracker], None]


class Follower:
    """A metric writer that sends everything to a tracker from a thread of its own.

    If the tracker fails, the user is told once; what is pending is tried again until the run ends. A line that was
    sent is recorded in the workdir: a resumed run, which repeats the steps since its checkpoint, does not send it
    again, and sends lines of metrics.jsonl that the tracker never got. So after a kill at most one line is there twice.

    Args:
        name: of the tracker.
        record: of the run in it; `id` and what was sent.
        connect: opens the run in the tracker by its id.
        tracker: the opened run, or the exception of a first attempt; the thread makes the next.
        warn: called from the thread with a line for the user.
    """

    def __init__(
        self,
        name: str,
        record: Record,
        connect: Callable[[], Tracker],
        tracker: Tracker | Exception,
        warn: Callable[[str], None],
    ):
        self._name, self._record, self._connect, self._warn = name, record, connect, warn
        self._tracker = None if isinstance(tracker, Exception) else tracker
        self._items: collections.deque[_Item] = collections.deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._outcome = FINISHED
        self._failing = False
        if isinstance(tracker, Exception):
            self._fail(tracker)
        self._thread = threading.Thread(target=self._run, name=f"to {name}", daemon=True)
        self._thread.start()

    def catch_up(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Send the lines of metrics.jsonl that the tracker does not have."""
        for line in lines:
            self.write_scalars(line["step"], {name: line[name] for name in line if name != "step"})

    def write_scalars(self, step, scalars):
        """Send finite numbers."""
        numbers = finite(scalars)
        order = _VALIDATION if "epoch" in scalars else _LOG
        self._add((step, order), lambda tracker: tracker.write_scalars(step, numbers))

    def write_images(self, step, images):
        """Send images."""
        self._add((step, _IMAGES), lambda tracker: tracker.write_images(step, images))

    def write_texts(self, step, texts):
        """Do nothing: trackers get the files of the report."""

    def write_hparams(self, hparams):
        """Do nothing: a tracker gets the configuration when its run is created."""

    def write_results(self, step: int, results: Mapping[str, float], report: Path) -> None:
        """Send the final metrics and the report's files, also if they were sent before: they may have changed."""
        numbers = finite(results)
        self._append(_Item((step, _RESULTS), lambda tracker: tracker.write_results(step, numbers, report)))

    def flush(self):
        """Do nothing: the thread sends as fast as the tracker takes."""

    def close(self, outcome: str = FINISHED) -> str:
        """Send what is pending, for a limited time; returns a line for the user if something was not sent.

        Args:
            outcome: how the run ended, as of `trackers`.
        """
        self._outcome = outcome
        with self._changed:
            self._closing.set()
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS[outcome])
        if self._items:
            return (
                f"{self._name}: {len(self._items)} of the run's lines are not there yet; the same command sends "
                "what is missing, and metrics.jsonl has all"
            )
        if self._thread.is_alive() and self._tracker is not None:
            return f"{self._name} did not confirm all of the run's lines; {self._tracker.rest}"
        return ""

    def _add(self, position, call):
        if position > self._record.sent:
            self._append(_Item(position, call))

    def _append(self, item):
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def _run(self):
        if self._failing:
            self._closing.wait(RETRY_SECONDS)
        while self._wait_for_item():
            if not self._attempt(self._items[0].call):
                return
            self._record.sent = max(self._record.sent, self._items[0].position)
            self._attempt(lambda tracker: self._record.write())
            self._items.popleft()
        self._attempt(lambda tracker: tracker.close(self._outcome))

    def _wait_for_item(self):
        """Whether there is an item to send; False when the run has ended and all is sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closing.is_set())
            return bool(self._items)

    def _attempt(self, call) -> bool:
        """Make a call, again and again until it succeeds; False if it never did before the run ended."""
        while True:
            try:
                if self._tracker is None:
                    self._tracker = self._connect()
                call(self._tracker)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's package raises, the run goes on
                self._fail(error)
            else:
                self._recover()
                return True
            if self._closing.is_set():
                return False
            self._closing.wait(RETRY_SECONDS)

    def _fail(self, error):
        if not self._failing:
            self._failing = True
            self._warn(
                f"{self._name} does not take the run's metrics ({brief(error)}); training goes on, they are in "
                "metrics.jsonl, and follow when it works again"
            )

    def _recover(self):
        if self._failing:
            self._failing = False
            self._warn(f"{self._name} works again")


def brief(error: BaseException) -> str:
    """An exception in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
