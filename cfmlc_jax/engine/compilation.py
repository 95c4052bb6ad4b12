"""Compiled programs that are kept on disk for later runs, and counts of what was compiled."""

import argparse
import contextlib
import platform
import sys
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from cfmlc_jax import files

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
NONE = "none"
# Programs that compile faster are not kept: reading them back would save nothing.
LEAST_SECONDS = 0.5
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Give a command the flag --compilation_cache, whose value is for `keep`."""
    parser.add_argument(
        "--compilation_cache",
        metavar="FOLDER",
        help=f"keep compiled programs there, or none; default ${VARIABLE}, else the user's cache",
    )


def keep(folder: str | None, warn: Callable[[str], None] = print_warning) -> None:
    """Let JAX keep compiled programs in a folder, so that the next process does not compile them again.

    The folder has one inside for each kind of processor, as code for CPUs uses instructions that others lack. A
    program's file there is named by all else that its code depends on: the program, the versions of JAX and of XLA,
    the flags of XLA, the devices. So a folder can serve several machines and runs at once.

    Call it before the first program is compiled.

    Args:
        folder: "none": keep nothing. None: $JAX_COMPILATION_CACHE_DIR if set, which JAX reads by itself; else
            the user's cache (`files.user_cache`).
        warn: prints a line for the user, if the folder cannot be written. Nothing is kept then.

    Raises:
        InputError: the folder is an address.
    """
    if folder == NONE:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if folder is None and jax.config.values["jax_compilation_cache_dir"]:
        return
    if folder is not None:
        files.require_path(folder, "--compilation_cache")
    try:
        place = (files.user_cache("xla") if folder is None else Path(folder).expanduser()) / processor()
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place, prefix=".writable"):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        reason = error.strerror if isinstance(error, OSError) else error
        named = folder or "the user's cache folder"
        warn(
            f"compiled programs are not kept: {named} cannot be written ({reason}); set --compilation_cache=FOLDER, or none"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def processor():
    """A name of this machine's kind of processor, with a checksum of its model and instruction sets."""
    lines = {platform.processor()}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = {line for line in file if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return f"{platform.machine()}-{zlib.crc32(''.join(sorted(lines)).encode()):08x}"


class Compilations:
    """What was compiled inside `counted`: numbers of programs by the name of their function.

    Several shapes of one function are several programs.

    all: compiled, or read from the folder of `keep`.
    loaded: read from the folder.
    """

    def __init__(self):
        self.all: Counter = Counter()
        self.loaded: Counter = Counter()


@contextlib.contextmanager
def counted() -> Iterator[Compilations]:
    """A context that counts the programs that JAX compiles inside, in all threads."""
    compilations, at_hand = Compilations(), threading.local()

    def on_event(event: str, **_: str | int) -> None:
        if event == _FROM_CACHE:  # comes before the duration of the same program
            at_hand.loaded = True

    def on_duration(event: str, duration_secs: float, **details: str | int) -> None:
        if event == _COMPILED:
            compilations.all[details.get("fun_name")] += 1
            compilations.loaded[details.get("fun_name")] += getattr(at_hand, "loaded", False)
            at_hand.loaded = False

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)
