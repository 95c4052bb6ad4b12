"""SIGTERM to one of several processes: all end at the same call, also over a slow network."""

import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cfmlc_jax import ending

# Polls in two stages, and prints the call at which it is asked to end. Of its arguments "signals" is the number of the
# process that sends itself SIGTERM between the stages, and "delay" the seconds between two polls.
PROGRAM = """
import os, signal, sys, time
import jax
from cfmlc_jax import cli, ending, processes
from cfmlc_jax.engine import hooks

ending.LOOK_SECONDS = 0.2
jax.config.update("jax_platforms", "cpu")
forward = processes._forward

class SlowSocket:
    def __init__(self, socket):
        self.sendall, self._socket = socket.sendall, socket

    def recv(self, size):
        time.sleep(0.005)
        return self._socket.recv(size)

processes._forward = lambda source, target, at_end: forward(SlowSocket(source), target, at_end)
address, count, number, signals = sys.argv[1], *map(int, sys.argv[2:5])
delay, stays = float(sys.argv[5]), sys.argv[6] == "stays"
members = processes.join(address, count, number)
with members:
    processes.require_devices()
    calls = 0
    with hooks.Preemption() as preemption:
        for calls in range(1, 6):
            assert not preemption.requested()
            time.sleep(delay)
    if number == signals:
        os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 10
    with hooks.Preemption() as preemption:
        while stays and time.monotonic() < deadline:
            calls += 1
            if preemption.requested():
                print("asked at", calls)
                break
            time.sleep(delay)
members.leave()
cli.end(0)
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(*delays, signals, leaves=None):
    """The last line of each process: one for each delay; `leaves` is the number of one that has no second stage."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        start(address, len(delays), number, signals, delay, "leaves" if number == leaves else "stays")
        for number, delay in enumerate(delays)
    ]
    try:
        results = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), results
    return [out.splitlines()[-1] for out, _ in results]


class Store:
    """JAX's key-value store, which loses every third message."""

    def __init__(self):
        self._values, self._messages = {}, itertools.count()

    def _receive(self):
        if next(self._messages) % 3 == 2:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: the message is lost")

    def key_value_dir_get(self, folder):
        self._receive()
        return [(key, value) for key, value in self._values.items() if key.startswith(folder)]

    def key_value_set(self, key, value, *, allow_overwrite):
        self._receive()
        assert allow_overwrite or key not in self._values
        self._values[key] = value


@pytest.fixture
def sigterm():
    previous = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, previous)


def test_the_end_is_the_call_after_the_highest_number_of_calls(monkeypatch, sigterm):
    monkeypatch.setattr(ending, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(ending, "EXCHANGE_SECONDS", 0.01)
    store, calls = Store(), (5, 9, 2)
    ends = [ending.CommonEnd() for _ in calls]
    for number, (end, before) in enumerate(zip(ends, calls, strict=True)):
        end.watch(store, number, len(calls))
        assert not any(end.reached() for _ in range(before))
    signal.raise_signal(signal.SIGTERM)  # to the last that watches
    # The others have seen the request when the signalled one may go on.
    for end, before in reversed([*zip(ends, calls, strict=True)]):
        assert [end.reached() for _ in range(before, 11)] == [False] * (9 - before) + [True, True]


@pytest.mark.parametrize("delays", [(0.02, 0.02), (0.005, 0.03, 0.015)])
def test_all_processes_are_asked_at_the_same_call(delays):
    lines = outputs(*delays, signals=1)
    assert len(set(lines)) == 1, lines
    assert int(lines[0].removeprefix("asked at ")) > 5


def test_a_process_is_asked_also_if_another_one_polls_no_more():
    line, other = outputs(0.02, 0.02, signals=0, leaves=1)
    assert line.startswith("asked at ")
    assert "asked" not in other
