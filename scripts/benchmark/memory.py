"""Memory of a process and of all processes below it; pages that they share are counted once."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

INTERVAL = 0.05  # seconds between two readings
IS_MEASURABLE = Path("/proc/self/smaps_rollup").is_file()  # Linux


def below(process: int) -> list[int]:
    """The numbers of all living processes below a process."""
    numbers = []
    with contextlib.suppress(OSError):  # it has ended
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended
                numbers += [int(number) for number in (task / "children").read_text().split()]
    return numbers + [lower for number in numbers for lower in below(number)]


def proportional(process: int) -> int:
    """A process's memory, bytes; a page that n processes share counts 1/n in each. 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def total(process: int) -> int:
    """Memory of a process and of all below it, bytes."""
    return sum(map(proportional, [process, *below(process)]))


def peak_during(run: Callable[[], Any], process: int) -> int:
    """The largest `total` of another process while `run` waits for it, bytes."""
    largest, ended = total(process), threading.Event()

    def watch():
        nonlocal largest
        while not ended.wait(INTERVAL):
            largest = max(largest, total(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run()
    finally:
        ended.set()
        thread.join()
    return largest
