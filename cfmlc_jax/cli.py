"""Shared by all commands: the parser of flags, the encoding of output, Ctrl-C and SIGTERM, the end of the process."""

import _thread
import argparse
import contextlib
import functools
import io
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, ParamSpec

import cfmlc_jax
from cfmlc_jax import commands, installed
from cfmlc_jax.errors import InputError, RunError

_P = ParamSpec("_P")
INTERRUPTED = 128 + signal.SIGINT
# The signals that end a command, and how its last line begins.
_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "asked to end"}
_SECONDS_FOR_ACTIONS = 15.0  # before a signal ends the process
# The number of a process among those that a cluster started; which of them counts is decided with JAX's detectors.
_NUMBERS = ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "TPU_WORKER_ID", "JOB_COMPLETION_INDEX")

# Actions before a signal ends the process: of `at_interrupt`, and of the contexts of `if_interrupted`.
_at_interrupt: list[Callable[[], object]] = []
_in_contexts: list[Callable[[], object]] = []
# Whether this process prints that it was interrupted; of several it is one.
_says_interrupted = threading.Event()
_says_interrupted.set()
# Set when a signal ends the process.
_ending = threading.Event()


class Parser(argparse.ArgumentParser):
    """A command's parser: the help keeps the description's line breaks; a wrong flag raises a one-line InputError.

    Flags cannot be abbreviated, so that a flag added later does not change the meaning of an old command.
    """

    def __init__(self, **options: Any):
        for name in ("prog", "description"):
            if options.get(name) is not None:
                options[name] = commands.as_started(options[name])
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=documents(),
            **options,
        )
        self.add_argument(
            "--version", action="version", version=version(), help="print the version, and exit"
        )

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage and exiting."""
        raise InputError(f"{message}; --help lists the arguments")


def documents() -> str:
    """The line of --help that says where the documents are."""
    return f"documents: {installed.folder(installed.DOCUMENTS)}"


def version() -> str:
    """What --version prints."""
    return f"cfmlc_jax {cfmlc_jax.__version__}"


def whole_number(least: int) -> Callable[[str], int]:
    """A `type` for argparse: text -> int of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
        return int(text)

    return parse


def tolerate_every_name() -> None:
    """Make stdout and stderr escape what their encoding lacks: an é in ASCII, undecodable bytes of a path."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def command(main: Callable[_P, int]) -> Callable[_P, int]:
    """The function of a command, from one that raises: it prints an InputError or a RunError as a line on stderr, and returns 1."""

    @functools.wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> int:
        tolerate_every_name()
        try:
            try:
                return main(*args, **kwargs)
            finally:
                leave_to_signal()
        except (InputError, RunError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return run


def greet(arguments: Sequence[str]) -> None:
    """Print the first line of a command, before the imports that take seconds.

    Args:
        arguments: of the command line. With --help or --version, or in a process that is not the first by --process_id
            or by the variables of a cluster, nothing is printed.
    """
    words = " ".join(arguments).replace("=", " ").split()
    following = dict(itertools.pairwise(words))
    given = following.get("--process_id", following.get("-process_id"))
    numbers = {os.environ.get(name, "0") for name in _NUMBERS} if given is None else {given}
    if not {"--help", "--version"} & set(words) and numbers == {"0"}:
        print(f"{version()}, loading JAX", flush=True)


def end_at_interrupt(remark: str = "") -> None:
    """Make SIGINT (Ctrl-C) and SIGTERM print a line and end the process at once, with exit code 130 or 143.

    Call this before other packages start threads: the signals are blocked in every thread, and one
    dedicated thread waits for them. A KeyboardInterrupt would be raised wherever the main thread is: in an
    import or a C++ callback, which lose it or crash, or after minutes of compilation. No cleanup is
    needed: files are replaced atomically, and a run resumes from its last checkpoint as after SIGKILL.

    While Python has a handler of SIGTERM (`hooks.Preemption`), the main thread runs that instead. Without one the
    system would drop the signal if this process is the first of a container.

    Child processes inherit the blocked signals, so workers do not receive a terminal's Ctrl-C, or the SIGTERM of a
    scheduler to all processes of a run; they end with their parent.

    A signal that was ignored from the start (SIGINT in a shell's background job) stays ignored.

    Args:
        remark: follows the word "interrupted", or "asked to end", on the line.
    """
    # Python's resource tracker removes the memory shared with workers, and would warn about it.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    signals = [number for number in _WORDS if signal.getsignal(number) is not signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_end_at_interrupt, args=[signals, remark], daemon=True).start()


def at_interrupt(action: Callable[[], object]) -> None:
    """Register an action to run before a signal ends the process: short, and safe while the main thread runs."""
    _at_interrupt.append(action)


def leave_interrupts_to_another() -> None:
    """Print no line when a signal ends this process: another process of the run, which gets it too, prints it."""
    _says_interrupted.clear()


@contextlib.contextmanager
def if_interrupted(action: Callable[[], object]) -> Iterator[None]:
    """A context in which `action` runs before a signal ends the process, after those of `at_interrupt`.

    Of contexts in each other the action of the innermost runs first, as when they are left.
    """
    _in_contexts.append(action)
    try:
        yield
    finally:
        _in_contexts.remove(action)


def leave_to_signal() -> None:
    """Wait for the end of the process if a signal ends it now: before an error is told that its actions may have caused."""
    if _ending.is_set():
        threading.Event().wait()


def run_actions(seconds: float) -> None:
    """Run the actions of an interrupt before another end of the process, for this many seconds at most."""
    thread = threading.Thread(target=_run_actions, daemon=True)
    thread.start()
    thread.join(seconds)  # a file system may not answer


def _run_actions():
    for action in [*_at_interrupt, *reversed(_in_contexts)]:
        # The main thread is still at work, so anything may fail; the other actions are none the less due.
        with contextlib.suppress(Exception):
            action()


def _end_at_interrupt(signals, remark):
    number = signal.sigwait(signals)
    while number == signal.SIGTERM and callable(signal.getsignal(number)):
        _thread.interrupt_main(signal.SIGTERM)
        number = signal.sigwait(signals)
    _ending.set()
    # Write to the file descriptor: the main thread may hold the stream's lock. A progress line may be open.
    start = "\n" if os.isatty(2) else ""
    line = "; ".join(filter(None, [_WORDS[number], remark]))
    if _says_interrupted.is_set():
        with contextlib.suppress(OSError):  # a closed pipe
            os.write(2, f"{start}{line}\n".encode("ascii", "backslashreplace"))
    try:
        run_actions(_SECONDS_FOR_ACTIONS)
    finally:  # also if no further thread can be started
        os._exit(128 + number)


def end(code: int) -> NoReturn:
    """Flush all output and end the process with an exit code.

    The interpreter is not torn down: threads of JAX, Orbax and Grain are still running, and tearing it
    down under them sometimes causes a segmentation fault. Callers close what must be closed before.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the stream is closed
            stream.flush()
    os._exit(code)
