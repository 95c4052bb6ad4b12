"""What all commands share: their flags' parser, what streams can write, Ctrl-C, the end of the process."""

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from cfmlc_jax.errors import InputError, printable

INTERRUPTED = 128 + signal.SIGINT

_at_interrupt: list[Callable[[], object]] = []


class Parser(argparse.ArgumentParser):
    """A command's parser: its help shows the description as written, and a mistake is an InputError of one line.

    Flags are not abbreviated: one that is added later cannot change what an old command means.
    """

    def __init__(self, **options: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage and exiting."""
        raise InputError(f"{printable(message)}; --help lists the arguments")


def whole_number(least: int) -> Callable[[str], int]:
    """A `type` of arguments: text -> int of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return parse


def tolerate_every_name() -> None:
    """Let stdout and stderr write as escapes what their encoding lacks: an é in ASCII, undecodable bytes of a path."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def end_at_interrupt(message: str) -> None:
    """From now on SIGINT (Ctrl-C) prints this line and ends the process at once, with exit code 130.

    Call it before the threads of other packages start: the signal is blocked in every thread, and a
    thread of its own waits for it. As a KeyboardInterrupt it would surface wherever the main thread
    is: in an import or a callback of C++ code, which lose it or crash, or after minutes of
    compilation. Nothing needs an orderly end: files are replaced whole, and a run resumes from its
    last checkpoint as after SIGKILL. Child processes inherit the blocked signal, so workers do not
    get a terminal's Ctrl-C; they end with their parent.

    Where SIGINT is ignored from the start (a shell's background job), it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    # What lies between a killed worker and its parent is removed by Python's own tracker, which warns of it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    threading.Thread(target=_end_at_interrupt, args=[message], daemon=True).start()


def at_interrupt(action: Callable[[], object]) -> None:
    """Have this done before SIGINT ends the process: something short, safe beside a running main thread."""
    _at_interrupt.append(action)


def _end_at_interrupt(message):
    signal.sigwait([signal.SIGINT])
    # Straight to the file: the main thread may hold the stream's lock. A progress line may be open.
    start = "\n" if os.isatty(2) else ""
    with contextlib.suppress(OSError):  # a closed pipe
        os.write(2, f"{start}{message}\n".encode("ascii", "backslashreplace"))
    for action in _at_interrupt:
        action()
    os._exit(INTERRUPTED)


def end(code: int) -> NoReturn:
    """End the process with an exit code, all output flushed.

    The interpreter is not torn down: threads of JAX, Orbax and Grain still run, and losing it under
    them ends in a segmentation fault now and then. Whatever has to be closed is closed before.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)
