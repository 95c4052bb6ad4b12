"""What a run logs of its steps, for which the devices never wait, and of its compilation."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.engine import compilation
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.memory import compile_within_memory
from cfmlc_jax.engine.step import TrainStep


class Logged(NamedTuple):
    """What is logged of a step: the host's waits (`Progress.waits`), the state's tally, the system's readings."""

    step: int
    waits: dict[str, float]
    tally: dict[str, Any]
    readings: dict[str, Any]


class Log:
    """Writes the values of a step when the next step is on its way, so that the devices never wait for the host.

    Args:
        mesh: the devices.
        write: called with the values on the host.
    """

    def __init__(self, mesh: jax.sharding.Mesh, write: Callable[[Logged], None]):
        # Copies, because the next step donates the state.
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=meshes.replicated(mesh))
        self._write = write
        self._pending: Logged | None = None

    def add(self, step: int, waits: dict[str, float], tally, readings) -> None:
        """Keep the values of a step for the next `flush`."""
        self._pending = Logged(step, waits, *self._copy((tally, readings)))

    def flush(self) -> None:
        """Wait for the values that were added last, and write them."""
        if self._pending is not None:
            logged, self._pending = self._pending, None
            self._write(jax.device_get(logged))


def with_compilation_reported(train_step: TrainStep, progress):
    """The same function; its first call, which compiles for seconds to minutes, is timed and not in the rates.

    It raises as `compile_within_memory` if the step needs more memory than the device has.
    """
    calls = 0

    def timed_once(state, batch):
        nonlocal calls
        calls += 1
        if calls > 1:
            return train_step(state, batch)
        progress.note("compiling the training step")
        start = time.perf_counter()
        with progress.paused(), compilation.counted() as compilations:
            compile_within_memory(train_step.jitted.lower(state, batch))
            result = train_step(state, batch)
        compiled = time.perf_counter()
        jax.block_until_ready(result)
        source = " (from the cache)" if compilations.loaded.total() else ""
        progress.note(
            f"compiled in {compiled - start:.1f} s{source}; the first step took {time.perf_counter() - compiled:.1f} s"
        )
        return result

    return timed_once
