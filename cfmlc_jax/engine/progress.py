"""The progress line: the step, the speed and the time left."""

import contextlib
import sys
import time

# What a host can wait for.
WAITS = ("input", "device")


class Progress:
    """Prints "step 280/760  epoch 3/8 …  4.1 steps/s  260 images/s  ETA 1:57" to standard error.

    On a terminal each report overwrites the last; elsewhere each report is a new line.

    Args:
        total: steps of the whole run.
        batch_size: images of a step, over all devices.
        done: steps that were done before this process started.
        silent: print nothing; for all processes but the first.
        unit: what is counted, in the plural.
    """

    def __init__(
        self, total: int, *, batch_size: int, done: int = 0, silent: bool = False, unit: str = "steps"
    ):
        self._total, self._batch_size, self._unit = total, batch_size, unit
        self._stream = None if silent else sys.stderr
        self._mark = (done, time.perf_counter())
        self._waited, self._waits_since = dict.fromkeys(WAITS, 0.0), done
        self._open_line = False

    def report(self, step: int, text: str) -> dict[str, float]:
        """Print the line; return {"steps_per_second", "images_per_second"} since the last report."""
        before, then = self._mark
        now = time.perf_counter()
        self._mark = (step, now)
        rate = (step - before) / max(now - then, 1e-9)
        line = (
            f"{self._unit.removesuffix('s')} {step}/{self._total}  {text}  {rate:.2f} {self._unit}/s  "
            f"{rate * self._batch_size:.0f} images/s  ETA {clock((self._total - step) / max(rate, 1e-9))}"
        )
        self._print(line)
        return {"steps_per_second": rate, "images_per_second": rate * self._batch_size}

    def waits(self, step: int) -> dict[str, float]:
        """Seconds a step in which the host waited since the last call: {"input_wait", "device_wait"}."""
        steps = max(step - self._waits_since, 1)
        waits = {f"{name}_wait": seconds / steps for name, seconds in self._waited.items()}
        self._waited, self._waits_since = dict.fromkeys(WAITS, 0.0), step
        return waits

    @contextlib.contextmanager
    def waiting(self, what: str):
        """A context in which the host waits for "input" (a batch) or "device" (results)."""
        start = time.perf_counter()
        yield
        self._waited[what] += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self):
        """A context whose time (of a validation or a save) does not count in the rates."""
        start = time.perf_counter()
        yield
        step, then = self._mark
        self._mark = (step, then + time.perf_counter() - start)

    def note(self, text: str):
        """Print a line that is not overwritten."""
        if self._stream is not None:
            start = "\n" if self._open_line else ""
            print(f"{start}{text}", file=self._stream, flush=True)
            self._open_line = False

    def _print(self, line):
        if self._stream is None:
            return
        if self._stream.isatty():
            print(f"\r\033[K{line}", end="", file=self._stream, flush=True)
            self._open_line = True
        else:
            print(line, file=self._stream, flush=True)


def clock(seconds: float) -> str:
    """A duration in seconds as text, m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
