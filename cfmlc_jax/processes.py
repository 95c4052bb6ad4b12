"""Several processes of one run: how they connect, and how all of them end when one fails.

JAX alone would abort the others with a stack trace, minutes after a process died, and would wait
five minutes at its exit for one that failed. So the processes watch each other through JAX's
key-value store: a process that fails publishes why, and the others end. Processes that were started by
hand (--coordinator) print that line each; those that a cluster started, whose output comes together, print it once.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed, xla_bridge  # the store's client and the flag have no public names
from jax.experimental import multihost_utils

from cfmlc_jax import cli
from cfmlc_jax.clusters import detect, gpus
from cfmlc_jax.ending import common_end
from cfmlc_jax.errors import InputError, RunError, printable

JOIN_SECONDS = 300.0  # until all processes must have connected
JOIN_TO_REPORT_SECONDS = 15.0  # the same for a process that already has an error to report
SIGN_SECONDS = 5.0  # between signs of life
SILENCE_SECONDS = 30.0  # without a sign of life, after which a process counts as dead
END_SECONDS = 5.0  # for which process 0, which holds the store, waits until the others have read an error
WAIT_SECONDS = 24 * 3600.0  # for what another process does alone; if it dies, the watch ends this one earlier
_ROOM = "cfmlc_jax"
_FAILED, _ALIVE, _ENDED, _GPUS = (f"{_ROOM}/{name}" for name in ("failed", "alive/", "ended/", "gpus/"))
# How what XLA reports begins; of a broken connection between CPUs JAX makes a ValueError.
_STATUS = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")
_SAYS = " failed: "  # between the name of a process and its error
# Numbers of the calls of `first_then_others`, `of_first` and `gather`: each barrier and message has a name of its own.
_turns = itertools.count()


def require_devices() -> None:
    """Raise unless JAX has devices to compute on.

    Raises:
        InputError: the requested platform is not available, or it joins processes that cannot agree with each other.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"JAX has no device to compute on ({reason}); check --jax_platforms and $JAX_PLATFORMS"
        ) from error
    if jax.process_count() > 1 and distributed.global_state.client is None:  # TPU hosts join by themselves
        raise InputError(
            f"the devices are of {jax.process_count()} processes, which are not connected and could not save together; "
            "remove --cluster=none, or give --coordinator, --num_processes and --process_id"
        )
    if jax.process_count() > 1:
        # CPUs wait 30 s for each other at their first collective. The first of a training would come when it is
        # compiled, which takes one process longer than another that has kept the program.
        multihost_utils.sync_global_devices(f"{_ROOM}/devices")


def first_then_others(action: Callable[[], Any]) -> Any:
    """What an action returns in each process of the run; the others begin it when the first has finished.

    So what the first downloads into a folder that all share, the others find. If it fails, its error ends them.
    All processes make the same calls in the same order.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return action()
    turn = next(_turns)  # before the action, which may take turns itself
    is_first = jax.process_index() == 0
    result = action() if is_first else None
    client.wait_at_barrier(f"{_ROOM}/first/{turn}", timeout_in_ms=int(WAIT_SECONDS * 1000))
    return result if is_first else action()


def of_first(action: Callable[[], Any]) -> Any:
    """What an action returns in the first process, a JSON value, in each process of the run; the others do not act.

    So all go on by the same answer where each alone might see another: of files that change meanwhile, or in a network
    folder whose list is old. If the first fails, its error ends them. All processes make the same calls in the same order.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return action()
    key = f"{_ROOM}/of_first/{next(_turns)}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(action()))
    return json.loads(client.blocking_key_value_get(key, int(WAIT_SECONDS * 1000)))


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order, on all processes. Unlike a collective, it may take minutes.

    All processes make the same calls in the same order.
    """
    client: Any = distributed.global_state.client
    if client is None:
        return [text]
    key = f"{_ROOM}/gather/{next(_turns)}"
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    return [
        client.blocking_key_value_get(f"{key}/{number}", int(WAIT_SECONDS * 1000))
        for number in range(jax.process_count())
    ]


class Alone:
    """The only process of a run: it prints its own errors and waits for nobody.

    Args:
        mistake: an error that it already has to report; entering the context raises it.
    """

    def __init__(self, mistake: Exception | None = None):
        self._mistake = mistake

    def __enter__(self) -> "Alone":
        if self._mistake is not None:
            raise self._mistake
        return self

    def __exit__(self, *_):
        pass

    def fail(self, error: Exception) -> None:
        """Print the error on one line."""
        print(f"error: {printable(str(error))}", file=sys.stderr)

    def tell(self, line: str) -> None:
        """Print a line on stderr."""
        print(line, file=sys.stderr)

    def leave(self) -> None:
        """Return at once: there is no other process to wait for."""


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    cluster: str = detect.AUTO,
    mistake: Exception | None = None,
    handled: tuple[type[Exception], ...] = (),
) -> "Alone | Together":
    """Connect to the other processes of the run, if there are any.

    Args:
        coordinator: "host:port" of process 0; None: the cluster knows it, or this is the only process.
        num_processes: how many processes the run has, with `coordinator`.
        process_id: number of this process, from 0, with `coordinator`.
        cluster: how to look for a cluster (`detect.detect`).
        mistake: an error that this process already has to report; it then waits less long for the others. The
            context raises it.
        handled: exceptions, besides this package's, that the caller handles.

    Raises:
        InputError: one of the flags is missing or wrong, or the cluster's processes cannot be found. In a cluster
            the context raises the former, so that it is printed once.
        RunError: process 0 cannot listen at the coordinator's port.
    """
    place = None
    try:
        place = _by_flags(coordinator, num_processes, process_id)
    except InputError as error:
        mistake = mistake or error
    try:
        detected = detect.detect(cluster)
    except InputError:
        if place is None and mistake is None:
            raise
        detected = None
    if detected is not None:
        if place is not None:
            mistake = mistake or InputError(
                f"--coordinator={coordinator} beside {detected.name}, which has started {detected.count} processes that "
                "find each other; remove --coordinator, --num_processes and --process_id, or add --cluster=none"
            )
        place = _by_cluster(detected)
    if place is None:
        return Alone(mistake)
    return Together(place, mistake=mistake, handled=handled)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where the processes of a run meet.

    host, port: of process 0.
    count: of the processes.
    number: of this process, from 0.
    cluster: the cluster that started them, whose output comes together; None: they were started by hand.
    """

    host: str
    port: int
    count: int
    number: int
    cluster: str | None


def _by_flags(coordinator, num_processes, process_id) -> _Place | None:
    if coordinator is None:
        for name, value in (("num_processes", num_processes), ("process_id", process_id)):
            if value is not None:
                raise InputError(
                    f"--{name}={value} needs --coordinator, host:port of process 0; add it, or omit --{name}"
                )
        return None
    address = _address(coordinator)
    if address is None:
        raise InputError(
            f"--coordinator={coordinator} is not host:port; give process 0's host and a free port, such as node1:1234"
        )
    if num_processes is None or process_id is None:
        name = "num_processes" if num_processes is None else "process_id"
        raise InputError(f"--coordinator={coordinator} needs --{name} too; add it")
    if num_processes < 1:
        raise InputError(f"--num_processes={num_processes} must be at least 1")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, for --num_processes={num_processes}"
        )
    return _Place(*address, num_processes, process_id, None)


def _by_cluster(cluster: detect.Cluster) -> _Place:
    text = cluster.address(int(JOIN_SECONDS))
    address = _address(text)
    if address is None:
        raise InputError(
            f"{cluster.name} gives {text!r} as the address of process 0; set $JAX_COORDINATOR_ADDRESS"
        )
    return _Place(*address, cluster.count, cluster.number, cluster.name)


class Together:
    """One of several connected processes, made by `join`; a context manager around their common work.

    An exception that the caller does not handle ends the process here, because the interpreter's own exit
    would wait for the others. An error raised by JAX may have its cause in another process: before it is
    reported, this process waits until the other one has published its error or counts as dead.
    """

    def __init__(self, place: _Place, *, mistake: Exception | None, handled):
        self._handled = (InputError, RunError, KeyboardInterrupt, *handled)
        self._count, self._number, self._me = place.count, place.number, f"process {place.number}"
        self._once = place.cluster is not None
        if self._once:
            self._me += f" on {socket.gethostname()}"
        self._leaving = self._told = False
        self._lock = threading.Lock()
        self._connect(place, mistake)
        self._client: Any = distributed.global_state.client
        # By process: its last sign of life, and in how many looks after the first process 0 saw the same.
        self._signs = [("", -1)] * place.count
        threading.Thread(target=self._watch, daemon=True).start()
        if place.count > 1:  # a single process has no other to agree with
            common_end.watch(self._client, place.number, place.count)
        cli.at_interrupt(self._interrupted)
        if self._once and place.number > 0:
            cli.leave_interrupts_to_another()
        self._mistake = mistake
        if mistake is None:
            try:
                self._share_gpus(place)
            except InputError as error:
                self._mistake = error

    def __enter__(self) -> "Together":
        if self._mistake is not None:
            raise self._mistake
        return self

    def __exit__(self, kind, error, trace):
        if error is None or isinstance(error, self._handled):
            return
        cli.leave_to_signal()
        if isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error)):
            time.sleep(SILENCE_SECONDS + 2 * SIGN_SECONDS)
        text = f"{kind.__name__}: {' '.join(str(error).split())}"
        mine = f"{self._me}{_SAYS}{text}"[:500]
        first = self._publish(mine)
        if self._once and self._number == 0 and _error_of(first) != _error_of(mine):
            self._print(first)
        if not self._once or first == mine or _error_of(first) != _error_of(mine):
            sys.excepthook(kind, error, trace)
        self._part()
        cli.end(1)

    def fail(self, error: Exception) -> None:
        """Publish this error so that the others end; print it, unless another process has published the same first.

        In a cluster process 0 prints for all, unless it does not answer.
        """
        mine = f"{self._me}{_SAYS}{error}"
        first = self._publish(mine)
        agreed = first == mine or _error_of(first) == str(error)
        if not self._once:
            self._print(*([str(error)] if first == mine or not agreed else []))
        elif self._number == 0:
            self._print(*([] if agreed else [first]), str(error))
        elif not agreed:
            self._print(mine)
        if not self._part() and agreed and self._once:
            self._print(mine)

    def tell(self, line: str) -> None:
        """Print a line on stderr that all processes have to tell; in a cluster process 0 prints it."""
        if not self._once or self._number == 0:
            print(line, file=sys.stderr)

    def leave(self) -> None:
        """Wait until all processes have finished, then disconnect.

        Process 0 still has reports to write; until it has finished, the others keep watching.
        """
        self._client.wait_at_barrier(f"{_ROOM}/end", timeout_in_ms=24 * 3600 * 1000)
        self._leaving = True
        common_end.close()
        jax.distributed.shutdown()

    def _connect(self, place, mistake):
        """Connect all processes; end this one if they do not all come."""
        seconds = JOIN_SECONDS if mistake is None else JOIN_TO_REPORT_SECONDS
        where = f"{place.host}:{place.port}"
        timer = threading.Timer(seconds, self._exit, [str(mistake or _late(place, where, seconds))])
        timer.daemon = True
        timer.start()
        if place.cluster is not None and place.number == 0:
            print(f"{place.cluster}: {place.count} processes, which meet at {where}", flush=True)
        # JAX aborts when its connection breaks; the relay ends this process with one line instead.
        first = place.number == 0
        address = f"127.0.0.1:{place.port}" if first else _Relay(place.host, place.port, self._lost).address
        # Both are addresses of this machine, which a proxy would not reach.
        os.environ["no_grpc_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1"]))  # noqa: SIM112
        jax.config.update("jax_check_proxy_envs", False)
        jax.config.update("jax_enable_preemption_service", False)  # `ending` instead
        try:
            jax.distributed.initialize(
                address,
                place.count,
                place.number,
                coordinator_bind_address=f"[::]:{place.port}" if first else None,
                initialization_timeout=int(2 * JOIN_SECONDS),
                cluster_detection_method="deactivate",  # would also choose one GPU for each process
            )
        except (RuntimeError, ValueError) as failure:
            reason = " ".join(str(failure).split())
            given = f"--coordinator={where}" if place.cluster is None else where
            how = "" if place.cluster is None else " by $JAX_COORDINATOR_PORT"
            raise RunError(
                f"process {place.number} cannot listen at {given} ({reason}); choose another port{how}"
            ) from failure
        finally:
            timer.cancel()

    def _share_gpus(self, place):
        """Take this process's part of the GPUs that it sees, if others see them too."""
        platforms = jax.config.values["jax_platforms"]
        chosen = os.environ.get("JAX_LOCAL_DEVICE_IDS") or xla_bridge.CUDA_VISIBLE_DEVICES.value != "all"
        on_gpus = not platforms or "cuda" in platforms or "gpu" in platforms
        uuids = gpus.visible() if on_gpus and not chosen else []
        self._client.key_value_set(f"{_GPUS}{self._number}", json.dumps(uuids))
        self._client.wait_at_barrier(f"{_ROOM}/gpus", timeout_in_ms=int(1000 * JOIN_SECONDS))
        visible = {
            int(key.removeprefix(_GPUS)): json.loads(text)
            for key, text in self._client.key_value_dir_get(_GPUS)
        }
        if place.cluster == "SLURM":
            way_out = "add --gpus-per-task=1 to srun, or start one task a node: --ntasks-per-node=1"
        else:
            way_out = "set $CUDA_VISIBLE_DEVICES for each process, or start one process a machine"
        own = gpus.share(self._number, visible, way_out)
        if own is not None:
            jax.config.update("jax_cuda_visible_devices", ",".join(map(str, own)))

    def _interrupted(self):
        if self._leaving:
            return
        self._publish(f"{self._me} was interrupted")
        self._part()

    def _publish(self, line):
        """Publish why this process ends; returns the line of the process that failed first."""
        self._leaving = True
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
            self._client.key_value_set(_FAILED, line)
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
            line = self._client.key_value_try_get(_FAILED)
        return line

    def _part(self) -> bool:
        """Wait until this process may end; False if another one does not answer.

        Process 0, whose end closes the store, waits for all others. In a cluster these wait until process 0 has
        printed: MPI's launchers kill it when one of them ends with an error.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_ENDED}{self._number}", "", allow_overwrite=True)
            if self._number > 0 and self._once:
                self._client.blocking_key_value_get(f"{_ENDED}0", int(1000 * END_SECONDS))
            deadline = time.monotonic() + END_SECONDS
            while self._number == 0 and len(self._client.key_value_dir_get(_ENDED)) < self._count:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.1)
            if self._number == 0:
                time.sleep(0.5)  # for the others to end after they have recorded it
            return True
        return False

    def _watch(self):
        self._give_sign()
        while not self._leaving:
            try:
                line = self._client.blocking_key_value_get(_FAILED, int(1000 * SIGN_SECONDS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._lost()
                self._give_sign()
                continue
            if self._once and self._number == 0:
                time.sleep(0.5)  # an error of all processes is about to be this one's, too
            if not self._leaving:
                self._end(line)

    def _give_sign(self):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the relay notices if process 0 is gone
            sign = f"{time.time()} {self._me}"
            self._client.key_value_set(f"{_ALIVE}{self._number}", sign, allow_overwrite=True)
            if self._number == 0:
                self._look_for_signs()

    def _look_for_signs(self):
        """End if a process gives no sign in as many looks as that time has.

        By the clock process 0 would count one as dead right after a pause of all: of a job that was suspended, or of
        functions that keep Python's lock.
        """
        signs = dict(self._client.key_value_dir_get(_ALIVE))
        for number, (before, looks) in enumerate(self._signs):
            sign = signs.get(f"{_ALIVE}{number}", "")
            looks = looks + 1 if sign == before else 0
            self._signs[number] = sign, looks
            if looks * SIGN_SECONDS >= SILENCE_SECONDS and not self._leaving:
                name = sign.partition(" ")[2] or f"process {number}"
                self._end(self._publish(_gone(name, f"no sign of life for {SILENCE_SECONDS:.0f} s")))

    def _lost(self):
        if not self._leaving:
            time.sleep(1)  # process 0 may have published a reason, which `_watch` then prints
            self._exit(_gone("process 0", "its connection broke"))

    def _end(self, line):
        """End because of a published line, which in a cluster process 0 prints."""
        self._leaving = True
        self._print(*([line] if not self._once or self._number == 0 else []))
        self._part()
        cli.run_actions(
            END_SECONDS
        )  # the workdir's lock, which process 0 holds, would stop the next start elsewhere
        self._exit()

    def _exit(self, *errors):
        self._print(*errors)
        os._exit(1)

    def _print(self, *errors):
        with self._lock:
            if not self._told:  # only the first thread prints
                os.write(
                    2,
                    "".join(f"error: {printable(error)}\n" for error in errors).encode(
                        "utf-8", "backslashreplace"
                    ),
                )
            self._told = self._told or bool(errors)


def _late(place, where, seconds):
    if place.cluster is None:
        return (
            f"the {place.count} processes did not all connect to {where} within {seconds:.0f} s; "
            "start all of them, with the same --coordinator and --num_processes"
        )
    return (
        f"the {place.count} processes of {place.cluster} did not all connect to {where} within {seconds:.0f} s; see the "
        "output of the others; if this is the only process, add --cluster=none"
    )


def _error_of(line):
    """The error in a published line, without the process; empty if it did not fail by an error."""
    return line.partition(_SAYS)[2]


def _gone(name, how):
    return (
        f"{name} is gone ({how}): it was killed, or its machine is down; see its output, then "
        "run the same commands again to resume from the last checkpoint"
    )


def _address(text) -> tuple[str, int] | None:
    """(host, port) of "host:port"; None for another text."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 2**16:
        return None
    return host.strip("[]"), int(port)


class _Relay:
    """A local port that forwards everything to process 0 and back.

    lost: called when process 0 closes a connection, or sends nothing for longer than signs of life
        take, and does not answer the next ones. JAX's side of the connection stays open.
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
        while data := _received(source):
            target.sendall(data)
    at_end()


def _received(source):
    try:
        return source.recv(1 << 16)
    except TimeoutError:
        # This process may have paused itself: its signs, which are answered, come only now.
        patience = source.gettimeout()
        source.settimeout(2 * SIGN_SECONDS)
        data = source.recv(1 << 16)
        source.settimeout(patience)
        return data
