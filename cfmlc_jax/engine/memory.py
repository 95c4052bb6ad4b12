"""Out-of-memory errors of devices and host, as one line: what is needed, what there is, what to make smaller."""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from cfmlc_jax.engine.plan import Memory, memory_of
from cfmlc_jax.engine.units import scaled, shown_bytes
from cfmlc_jax.errors import RunError

# "Used 20.12G of 15.75G hbm", by the compiler for TPUs.
_USED = re.compile(r"Used (\d+(?:\.\d+)?)([KMGT]?)i?B? of (\d+(?:\.\d+)?)([KMGT]?)i?B?")
# "Out of memory allocating 1234 bytes", "trying to allocate 3.50GiB".
_ALLOCATION = re.compile(r"allocat\w+ (\d+(?:\.\d+)?)\s*(?:([KMGT])i?B|bytes)")


class TooLarge(jax.errors.JaxRuntimeError):
    """A compiled program needs more memory than the device has, and was not run.

    needed: by the compiler's plan.
    """

    def __init__(self, needed: Memory):
        super().__init__("RESOURCE_EXHAUSTED: the compiled program was not run")
        self.needed = needed


@contextlib.contextmanager
def explained(
    activity: str, remedy: str, need: Callable[[], Memory] | None = None, images: int = 0
) -> Iterator[None]:
    """A context that turns the out-of-memory errors of Python, NumPy and JAX into a `RunError` of one line.

    Args:
        activity: what runs inside, such as "training"; the error starts with it.
        remedy: what the user can do; the error ends with it.
        need: computes the memory of the program that runs inside. It is called only after an error of a device that
            does not say so itself, and may take as long as the program's compilation.
        images: how many images are in memory at once; 0: unknown.

    Raises:
        RunError: there is not enough memory.
    """
    try:
        yield
    except MemoryError as error:
        raise RunError(f"{activity}: out of memory on the host ({_brief(error)}); {remedy}") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        device = jax.local_devices()[0]
        numbers = _numbers(error, device, need, images)
        raise RunError(
            f"{activity}: out of memory on the device, {device.device_kind} ({_brief(error)}); {numbers}{remedy}"
        ) from error


def compile_within_memory(lowered: jax.stages.Lowered) -> None:
    """Compile a program early, to learn whether it fits; its function does not compile it again.

    Otherwise GPUs would find out only when a program runs, and the system would kill a process on CPUs.

    Raises:
        TooLarge: it needs more memory than the device has.
        jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, the same by a compiler that knows its device.
    """
    needed, limit = memory_of(lowered.compile()), limit_of(jax.local_devices()[0])
    if limit is not None and needed.peak > limit:
        raise TooLarge(needed)


def _numbers(error, device, need, images):
    """What is needed and what there is, as far as they are known: the middle of a message."""
    text = str(error)
    compiled = refused(text)
    if compiled is not None:
        needed, there = compiled
        return f"it needs {shown_bytes(needed)}, and the device has {shown_bytes(there)}; "
    limit = limit_of(device)
    has = f"{_owner(device)} has {shown_bytes(limit)}" if limit else ""
    memory = error.needed if isinstance(error, TooLarge) else _computed(need)
    if memory is not None:
        return (
            f"it needs {shown_bytes(memory.peak)} on each device{f', and {has}' if has else ''}"
            f"{_room(memory, limit, images)}; "
        )
    single = _ALLOCATION.search(text)
    if single:
        asked = f"{shown_bytes(scaled(single[1], single[2] or ''))} more were asked for"
        return f"{asked}{f', and {has}' if has else ''}; "
    return f"{has}; " if has else ""


def refused(text: str) -> tuple[int, int] | None:
    """The bytes that a program needs, and those of the device, by a compiler's error; None if it is another error."""
    used = _USED.search(text)
    return None if used is None else (scaled(used[1], used[2]), scaled(used[3], used[4]))


def _computed(need):
    """The memory on each device; None if it is unknown, or the program cannot be compiled either."""
    try:
        return None if need is None else need()
    except jax.errors.JaxRuntimeError:
        return None


def _room(memory, limit, images):
    """How many images would fit: temporaries grow with them, the rest does not."""
    if not limit or not images or memory.peak <= limit:
        return ""
    share = (limit - (memory.peak - memory.temporaries)) / max(memory.temporaries, 1)
    return f", room for about {max(int(share * images), 0)} of the {images} images at once"


def limit_of(device: jax.Device) -> int | None:
    """The bytes that programs can use on a device; on a CPU those of the machine or container; None: unknown."""
    if device.platform == "cpu":
        return _memory_of_host()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _owner(device):
    return "this machine" if device.platform == "cpu" else "the device"


def _memory_of_host():
    sizes = []
    with contextlib.suppress(ValueError, OSError, AttributeError):  # other systems than Linux
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ValueError, OSError):  # no container, or "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes, default=None)


def _brief(error):
    """The first line of an error message that may have hundreds."""
    lines = str(error).strip().splitlines() or ["no details"]
    return lines[0].strip().rstrip(".:")[:200]


def peak_usage() -> dict[str, float]:
    """The most memory in use so far, GiB: "host_peak_gib" of this process, "device_peak_gib" of its fullest device.

    The second is missing where devices do not count it, such as CPUs.
    """
    in_use = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    readings = {"host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    known = [number for number in in_use if number is not None]
    return readings | ({"device_peak_gib": max(known) / 2**30} if known else {})
