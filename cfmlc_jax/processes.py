"""Several processes of one run: how they connect, and how all of them end when one fails.

JAX alone would abort the others with a stack trace, minutes after a process died, and would wait
five minutes at its exit for one that failed. So the processes watch each other through JAX's
key-value store: a process that fails publishes why, and the others print that line and end.
"""

import contextlib
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # the store's client has no public name

from cfmlc_jax import cli
from cfmlc_jax.errors import InputError, RunError

JOIN_SECONDS = 300.0  # until all processes must have connected
JOIN_TO_REPORT_SECONDS = 15.0  # the same for a process that already has an error to report
SIGN_SECONDS = 5.0  # between signs of life
SILENCE_SECONDS = 30.0  # without a sign of life, after which a process counts as dead
END_SECONDS = 5.0  # for which process 0, which holds the store, waits until the others have read an error
_ROOM = "cfmlc_jax"
# Numbers of the calls of `first_then_others`: each barrier has a name of its own.
_turns = itertools.count()
_FAILED, _ALIVE, _ENDED = f"{_ROOM}/failed", f"{_ROOM}/alive/", f"{_ROOM}/ended/"


def require_devices() -> None:
    """Raise unless JAX has devices to compute on.

    Raises:
        InputError: the requested platform is not available.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"JAX has no device to compute on ({reason}); check --jax_platforms and $JAX_PLATFORMS"
        ) from error


def first_then_others(action: Callable[[], Any]) -> Any:
    """What an action returns in each process of the run; the others begin it when the first has finished.

    So what the first downloads into a folder that all share, the others find. If it fails, its error ends them.
    All processes make the same calls in the same order.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return action()
    is_first = jax.process_index() == 0
    result = action() if is_first else None
    client.wait_at_barrier(f"{_ROOM}/first/{next(_turns)}", timeout_in_ms=24 * 3600 * 1000)
    return result if is_first else action()


class Alone:
    """The only process of a run: it prints its own errors and waits for nobody."""

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_):
        pass

    def fail(self, error: Exception) -> None:
        """Print the error on one line."""
        print(f"error: {error}", file=sys.stderr)

    def leave(self) -> None:
        """Return at once: there is no other process to wait for."""


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    mistake: Exception | None = None,
    handled: tuple[type[Exception], ...] = (),
) -> "Alone | Together":
    """Connect to the other processes of the run, if there are any.

    Args:
        coordinator: "host:port" of process 0; None: this is the only process.
        num_processes: how many processes the run has.
        process_id: number of this process, from 0.
        mistake: an error that this process already has to report; it then waits less long for the others.
        handled: exceptions, besides this package's, that the caller handles.

    Raises:
        InputError: one of the flags is missing or wrong.
        RunError: process 0 cannot listen at the coordinator's port.
    """
    if coordinator is None:
        for name, value in (("num_processes", num_processes), ("process_id", process_id)):
            if value is not None:
                raise InputError(
                    f"--{name}={value} needs --coordinator, host:port of process 0; add it, or omit --{name}"
                )
        return Alone()
    host, port = _place(coordinator)
    if num_processes is None or process_id is None:
        name = "num_processes" if num_processes is None else "process_id"
        raise InputError(f"--coordinator={coordinator} needs --{name} too; add it")
    if num_processes < 1:
        raise InputError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, for --num_processes={num_processes}"
        )
    return Together(host, port, num_processes, process_id, mistake=mistake, handled=handled)


class Together:
    """One of several connected processes, made by `join`; a context manager around their common work.

    An exception that the caller does not handle ends the process here, because the interpreter's own exit
    would wait for the others. An error raised by JAX may have its cause in another process: before it is
    reported, this process waits until the other one has published its error or counts as dead.
    """

    def __init__(self, host: str, port: int, count: int, number: int, *, mistake, handled):
        self._handled = (InputError, RunError, KeyboardInterrupt, *handled)
        self._count, self._number, self._me = count, number, f"process {number}"
        self._leaving = False
        self._lock = threading.Lock()
        seconds = JOIN_SECONDS if mistake is None else JOIN_TO_REPORT_SECONDS
        late = (
            f"the {count} processes did not all connect to {host}:{port} within {seconds:.0f} s; "
            "start all of them, with the same --coordinator and --num_processes"
        )
        timer = threading.Timer(seconds, self._end, [str(mistake or late)])
        timer.daemon = True
        timer.start()
        # JAX aborts when its connection breaks; the relay ends this process with one line instead.
        address = f"{host}:{port}" if number == 0 else _Relay(host, port, self._lost).address
        try:
            jax.distributed.initialize(
                address,
                count,
                number,
                coordinator_bind_address=f"[::]:{port}" if number == 0 else None,
                initialization_timeout=int(2 * JOIN_SECONDS),
            )
        except (RuntimeError, ValueError) as failure:
            reason = " ".join(str(failure).split())
            raise RunError(
                f"process {number} cannot listen at --coordinator={host}:{port} ({reason}); choose another port"
            ) from failure
        finally:
            timer.cancel()
        self._client: Any = distributed.global_state.client
        # By process: its last sign of life and when this process read it.
        self._signs = {str(i): ("", time.monotonic()) for i in range(count)}
        threading.Thread(target=self._watch, daemon=True).start()
        cli.at_interrupt(lambda: self._publish(f"{self._me} was interrupted"))

    def __enter__(self) -> "Together":
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, self._handled):
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(SILENCE_SECONDS + 2 * SIGN_SECONDS)
        self._publish(f"{self._me} failed: {kind.__name__}: {' '.join(str(error).split())}"[:500])
        sys.excepthook(kind, error, trace)
        cli.end(1)

    def fail(self, error: Exception) -> None:
        """Publish this error so that the others end; print it, unless another process published the same first."""
        mine = f"{self._me} failed: {error}"
        first = self._publish(mine)
        if first == mine or first.partition(" failed: ")[2] != str(error):
            print(f"error: {error}", file=sys.stderr)

    def leave(self) -> None:
        """Wait until all processes have finished, then disconnect.

        Process 0 still has reports to write; until it has finished, the others keep watching.
        """
        self._client.wait_at_barrier(f"{_ROOM}/end", timeout_in_ms=24 * 3600 * 1000)
        self._leaving = True
        jax.distributed.shutdown()

    def _publish(self, line):
        """Publish why this process ends; returns the line of the process that failed first."""
        self._leaving = True
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
            self._client.key_value_set(_FAILED, line)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
            line = self._client.key_value_try_get(_FAILED)
            self._acknowledge()
        return line

    def _acknowledge(self):
        """Record that this process has read the failure; process 0, whose exit closes the store, ends last."""
        self._client.key_value_set(f"{_ENDED}{self._number}", "", allow_overwrite=True)
        deadline = time.monotonic() + END_SECONDS
        while self._number == 0 and time.monotonic() < deadline:
            if len(self._client.key_value_dir_get(_ENDED)) == self._count:
                time.sleep(0.5)  # for the others to exit after they have recorded it
                return
            time.sleep(0.1)

    def _watch(self):
        while not self._leaving:
            try:
                line = self._client.blocking_key_value_get(_FAILED, int(1000 * SIGN_SECONDS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._lost()
                self._give_sign()
                continue
            if not self._leaving:
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    self._acknowledge()
                self._end(line)

    def _give_sign(self):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the relay notices if process 0 is gone
            self._client.key_value_set(f"{_ALIVE}{self._number}", str(time.time()), allow_overwrite=True)
            if self._number == 0:
                self._look_for_signs()

    def _look_for_signs(self):
        now = time.monotonic()
        for key, sign in self._client.key_value_dir_get(_ALIVE):
            number = key.removeprefix(_ALIVE)
            if self._signs[number][0] != sign:
                self._signs[number] = (sign, now)
        for number, (_, since) in self._signs.items():
            if now - since > SILENCE_SECONDS and not self._leaving:
                self._end(self._publish(_gone(number, f"no sign of life for {SILENCE_SECONDS:.0f} s")))

    def _lost(self):
        if not self._leaving:
            time.sleep(1)  # process 0 may have published a reason, which `_watch` then prints
            self._end(_gone("0", "its connection broke"))

    def _end(self, line):
        with self._lock:  # only the first thread prints
            os.write(2, f"error: {line}\n".encode("utf-8", "backslashreplace"))
            os._exit(1)


def _gone(number, how):
    return (
        f"process {number} is gone ({how}): it was killed, or its machine is down; see its output, then "
        "run the same commands again to resume from the last checkpoint"
    )


def _place(coordinator):
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--coordinator={coordinator} is not host:port; give process 0's host and a free port, such as node1:1234"
        )
    return host.strip("[]"), int(port)


class _Relay:
    """A local port that forwards everything to process 0 and back.

    lost: called when process 0 closes a connection, or sends nothing for longer than signs of life
        take. JAX's side of the connection stays open.
    """

    def __init__(self, host: str, port: int, lost: Callable[[], None]):
        self._place, self._lost = (host, port), lost
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            here, _ = self._server.accept()
            try:
                there = socket.create_connection(self._place, timeout=SILENCE_SECONDS)
            except OSError:
                here.close()  # process 0 does not listen yet: JAX tries again
                continue
            threading.Thread(target=_forward, args=[here, there, lambda: None], daemon=True).start()
            threading.Thread(target=_forward, args=[there, here, self._lost], daemon=True).start()


def _forward(source, target, at_end):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    at_end()
