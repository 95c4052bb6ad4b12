"""An evaluation after training waits for another one, unless it is asked to end."""

import os
import signal

import launchers
import pytest

from cfmlc_jax import lock
from cfmlc_jax.engine import hooks, report_lock
from cfmlc_jax.errors import InputError

# Waits for a lock, and is asked to end.
WAITING = """
import os
from pathlib import Path
import jax
from cfmlc_jax import cli, ending, processes
from cfmlc_jax.engine import hooks, report_lock

ending.LOOK_SECONDS = 0.2
jax.config.update("jax_platforms", "cpu")
members = processes.join(None, None, None, handled=(hooks.Preempted,))
try:
    with members, hooks.Preemption() as preemption:
        processes.require_devices()
        poll = lambda: preemption.raise_if_requested("its evaluation comes next")
        with report_lock.held_in_turn(Path(os.environ["TEST_FOLDER"]), lambda line: print(line, flush=True), poll):
            print("held", flush=True)
    code = 0
except hooks.Preempted:
    code = 143
members.leave()
cli.end(code)
"""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_TRIES", 0.01)


def test_it_waits_for_the_one_that_is_writing(tmp_path):
    first, lines, polls = lock.held(tmp_path, "evaluating"), [], []

    def poll():
        polls.append(len(lines))
        if len(polls) == 3:
            first.__exit__(None, None, None)

    first.__enter__()
    with report_lock.held_in_turn(tmp_path, lines.append, poll):
        assert str(os.getpid()) in (tmp_path / lock.FILE).read_text()
    assert not (tmp_path / lock.FILE).exists()
    assert polls == [1, 1, 1]
    (line,) = lines
    assert line.startswith(f"waiting: {tmp_path} is in use by process {os.getpid()} on ")
    assert "(evaluating since" in line


def test_a_request_ends_the_wait(tmp_path):
    def poll():
        raise hooks.Preempted("asked to end")

    with lock.held(tmp_path, "evaluating"):
        with pytest.raises(hooks.Preempted), report_lock.held_in_turn(tmp_path, print, poll):
            pytest.fail("the lock is another's")
        assert (tmp_path / lock.FILE).exists()


def test_it_does_not_wait_for_what_this_host_cannot_see(tmp_path):
    (tmp_path / lock.FILE).write_text(
        '{"host": "elsewhere", "pid": 7, "started": 1, "since": "then", "doing": "evaluating"}\n'
    )
    with (
        pytest.raises(InputError, match="was locked by process 7 on elsewhere"),
        report_lock.held_in_turn(tmp_path, pytest.fail, pytest.fail),
    ):
        pytest.fail("the lock is another's")


def test_of_several_processes_that_wait_all_end_at_a_request(tmp_path):
    with lock.held(tmp_path, "evaluating"):
        started = launchers.start("slurm", WAITING, TEST_FOLDER=str(tmp_path))
        while (line := started[0].stdout.readline()) and not line.startswith("waiting: "):
            pass
        started[1].send_signal(signal.SIGTERM)
        results = launchers.ends(started)
    assert [code for code, _, _ in results] == [143, 143], results
    assert "held" not in "".join(out for _, out, _ in results)
