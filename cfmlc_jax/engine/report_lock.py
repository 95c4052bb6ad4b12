"""The lock of a report's folder, which an evaluation after training waits for: nothing else is left to do."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cfmlc_jax import lock, processes


@contextlib.contextmanager
def held_in_turn(folder: Path, print_line: Callable[[str], None], poll: Callable[[], None]) -> Iterator[None]:
    """Hold the folder's lock for the duration of the block, after another evaluation has ended.

    The first process holds it. All wait together, because all must call `poll` equally often.

    Args:
        folder: of the report.
        print_line: prints a line that names who is waited for.
        poll: called while waiting; raises if the process must end.

    Raises:
        InputError, WriteError: as `lock.held`, but for a holder that runs.
    """
    with contextlib.ExitStack() as stack:

        def take() -> str:
            """Who holds the lock; empty if it is this process now."""
            try:
                stack.enter_context(lock.held(folder, "evaluating"))
            except lock.InUseError as error:
                return str(error)
            return ""

        holder = processes.of_first(take)
        if holder:
            print_line(f"waiting: {holder}")
        while holder:
            poll()
            time.sleep(lock.SECONDS_BETWEEN_TRIES)
            holder = processes.of_first(take)
        yield
