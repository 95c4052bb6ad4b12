"""Definition and result of a measurement."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """The work that a process measures.

    run: runs the work once and returns the number of units done (steps, images) and their seconds.
    flops: floating-point operations per unit; 0 if they are negligible.
    device, platform: the computing device, in JAX's terms.
    peak: returns the peak of the device's memory so far, bytes; None: the process's memory is measured.
    """

    run: Callable[[], tuple[int, float]]
    flops: float = 0.0
    device: str = "cpu"
    platform: str = "cpu"
    peak: Callable[[], int] | None = None


@dataclass
class Result:
    """One measurement by one framework: seconds per unit of every run, and peak memory in MB if it was measured."""

    name: str
    framework: str
    flops: float
    device: str
    seconds: list[float] = field(default_factory=list)
    peak_mb: float | None = None

    @property
    def fastest(self) -> float:
        """Seconds per unit of the fastest run."""
        return min(self.seconds)


def timed(run: Callable[[], Any]) -> Callable[[], tuple[int, float]]:
    """A function for `Work.run` that runs `run` as one unit and measures its seconds."""

    def once():
        start = time.perf_counter()
        run()
        return 1, time.perf_counter() - start

    return once
