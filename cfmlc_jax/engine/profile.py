"""A trace of some training steps, which TensorBoard's profile page, XProf and Perfetto show."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.errors import InputError

FOLDER = "profile"
# The most steps of a trace: the viewers show a million events, which are a few hundred steps.
MOST = 1000
# The name of a step in the trace, by which the viewers tell steps apart.
STEP = "train"
_STEPS = re.compile(r"(\d{1,9}):(\d{1,9})")


class Steps(NamedTuple):
    """The steps of a trace: those after step `first`, up to step `last`."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"steps {self.first + 1} to {self.last}"


def parsed(text: str) -> Steps:
    """The steps of a flag such as "100:110": the ten after step 100.

    Raises:
        InputError: another text, no step, or too many.
    """
    numbers = _STEPS.fullmatch(text)
    if numbers is None:
        raise InputError(
            f"--profile={text} is not FIRST:LAST; give two steps, as in 100:110 for the ten after step 100"
        )
    steps = Steps(int(numbers[1]), int(numbers[2]))
    if steps.first >= steps.last:
        raise InputError(
            f"--profile={text} has no step in it; the second number must be larger, as in 100:110"
        )
    if steps.last - steps.first > MOST:
        raise InputError(
            f"--profile={text} are {steps.last - steps.first} steps, of which no viewer shows the trace; "
            f"give at most {MOST}"
        )
    return steps


def _options() -> jax.profiler.ProfileOptions:
    """What is traced: the runtime and the devices, not Python's calls.

    While these are traced, a thread that begins can end at once (CPython: "Cannot install a profile function while another
    profile function is being installed"). Then a checkpoint waits 20 minutes for the thread that should write it.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


class Profiler:
    """Writes a trace of the training steps that a user asked for.

    Args:
        steps: to trace; None: none.
        folder: of the trace.
        done: steps that were done before this process started.
        total: steps of the whole run.
        progress: of the run; its rates do not count the time that starting and writing a trace takes.

    Raises:
        InputError: the run has none of the steps.
    """

    def __init__(self, steps: Steps | None, folder: Path, *, done: int, total: int, progress: Progress):
        self._folder, self._progress = folder, progress
        self._steps: Steps | None = None
        self._tracing_from: int | None = None
        self._latest = done
        if steps is None:
            return
        if steps.first >= total:
            raise InputError(
                f"--profile={steps.first}:{steps.last} asks for {steps}, but the run has {total}; give earlier ones"
            )
        if steps.last <= done:
            progress.note(f"--profile: nothing to trace, {steps} were done before")
            return
        self._steps = Steps(max(steps.first, done), min(steps.last, total))
        beyond = f"; the run ends at step {total}" if steps.last > total else ""
        before = f"; the run resumes at step {done}" if steps.first < done else ""
        progress.note(f"--profile: {self._steps} will be traced{before}{beyond}")

    @contextlib.contextmanager
    def step(self, number: int, state: Callable[[], object]) -> Iterator[None]:
        """A context for one step; it starts and ends the trace where that is due, when the devices are idle.

        Args:
            number: of the step, counted from 1.
            state: returns the arrays that the latest step computes.
        """
        if self._steps is not None and number == self._steps.first + 1:
            with self._progress.paused():
                jax.block_until_ready(state())
                self._start(number)
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            yield
        self._latest = number
        if self._steps is not None and number == self._steps.last:
            jax.block_until_ready(state())
            with self._progress.paused():
                self._stop(number)

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind, error, trace):
        """End a trace that is open, because the run ends early."""
        if self._tracing_from is not None:
            self._stop(self._latest)

    def _start(self, number):
        try:
            self._folder.mkdir(exist_ok=True)
            jax.profiler.start_trace(self._folder, profiler_options=_options())
        except (RuntimeError, OSError) as error:  # another profiler is attached to this process
            self._give_up(error)
        else:
            self._tracing_from = number

    def _stop(self, number):
        if self._tracing_from is None:
            return
        traced, self._tracing_from = Steps(self._tracing_from - 1, number), None
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:  # the disk is full
            self._give_up(error)
            return
        self._progress.note(
            f"--profile: a trace of {traced} is in {self._folder}; open it by tensorboard --logdir={self._folder} "
            "(pip install tensorboard xprof), or drop its .trace.json.gz on ui.perfetto.dev"
        )

    def _give_up(self, error):
        self._steps = None
        self._progress.note(f"--profile: no trace could be written ({' '.join(str(error).split())[:200]})")
