"""What a measurement does, and what came out of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a process measures.

    run: does it once; returns the units done (steps, images) and their seconds.
    flops: floating-point operations of a unit, 0 where there are none to speak of.
    device, platform: what computes, in JAX's words.
    peak: bytes of the device's memory at most so far; None: the process's memory.
    """

    run: Callable[[], tuple[int, float]]
    flops: float = 0.0
    device: str = "cpu"
    platform: str = "cpu"
    peak: Callable[[], int] | None = None


@dataclass
class Result:
    """One measurement by one framework: seconds per unit of every run, and peak memory in MB."""

    name: str
    framework: str
    flops: float
    device: str
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def fastest(self) -> float:
        """Seconds per unit of the fastest run."""
        return min(self.seconds)


def timed(run: Callable[[], Any]) -> Callable[[], tuple[int, float]]:
    """The run with its seconds, as `Work.run` gives them."""

    def once():
        start = time.perf_counter()
        run()
        return 1, time.perf_counter() - start

    return once
