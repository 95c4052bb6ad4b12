"""Several processes of a run: flags that do not fit, and how all end when one fails."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cfmlc_jax import processes
from cfmlc_jax.errors import InputError

# Joins the others, and then does what its last argument says.
PROGRAM = """
import ctypes, os, signal, sys, time
from cfmlc_jax import cli, processes
from cfmlc_jax.errors import InputError

address, number, what = sys.argv[1], int(sys.argv[2]), sys.argv[3]
processes.SIGN_SECONDS, processes.SILENCE_SECONDS = 0.3, 4.0 if what == "pauses" else 2.0
cli.end_at_interrupt()
members = processes.join(address, 2, number)
print("joined", flush=True)
try:
    with members:
        if what == "fails":
            raise InputError("a.jpg: is broken")
        if what == "has a defect":
            raise ZeroDivisionError("by zero")
        if what == "waits":
            time.sleep(60)
        if what == "pauses":
            time.sleep(0.5 if number else 1.0)
            ctypes.PyDLL(None).sleep(6 if number else 5)  # keeps Python's lock
            time.sleep(3)
        if what == "takes turns":
            def turn():
                time.sleep(0.5 * (number == 0))
                print(time.time(), file=sys.stderr)
            processes.first_then_others(turn)
            processes.first_then_others(turn)
        if what.startswith("asks"):
            def answer():
                if what == "asks in vain":
                    raise InputError("a.jpg: is broken")
                time.sleep(0.5)
                return [number, 7]
            first = processes.first_then_others(lambda: processes.of_first(answer))
            print(first, processes.of_first(lambda: number), file=sys.stderr)
    members.leave()
except InputError as error:
    members.fail(error)
    cli.end(1)
cli.end(0)
"""


def start(*whats):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number), what],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, what in enumerate(whats)
    ]


def ends(started):
    """Exit code and stderr of each."""
    results = []
    for process in started:
        _, err = process.communicate(timeout=120)
        results.append((process.returncode, err))
    return results


@pytest.mark.parametrize(
    ("whats", "expected"),
    [
        (("ends", "ends"), [(0, ""), (0, "")]),
        (
            ("waits", "fails"),
            [(1, "error: process 1 failed: a.jpg: is broken\n"), (1, "error: a.jpg: is broken\n")],
        ),
    ],
)
def test_all_processes_end_if_one_fails(whats, expected):
    assert ends(start(*whats)) == expected


def test_the_first_process_acts_before_the_others():
    (code, err), (other, more) = ends(start("takes turns", "takes turns"))
    assert (code, other) == (0, 0)
    times = [list(map(float, text.split())) for text in (err, more)]
    assert all(first < second for first, second in zip(*times, strict=True))
    assert len(times[0]) == 2
    (code, err), (other, more) = ends(start("fails", "takes turns"))
    assert (code, other) == (1, 1)
    assert more == "error: process 0 failed: a.jpg: is broken\n"


def test_all_processes_have_the_answer_of_the_first():
    assert ends(start("asks", "asks")) == 2 * [(0, "[0, 7] 0\n")]
    assert ends(start("asks in vain", "asks")) == [
        (1, "error: a.jpg: is broken\n"),
        (1, "error: process 0 failed: a.jpg: is broken\n"),
    ]


def test_a_process_alone_acts_at_once():
    assert processes.first_then_others(lambda: 7) == 7
    assert processes.of_first(lambda: 7) == 7


def test_messages_of_all_processes_are_printed_once():
    (code, err), (other, more) = ends(start("fails", "fails"))
    assert (code, other) == (1, 1)
    lines = (err + more).splitlines()
    # A process that hears of the failure before it fails itself names the other process.
    assert {line.removeprefix("error: ").rpartition(" failed: ")[2] for line in lines} == {"a.jpg: is broken"}
    assert "error: a.jpg: is broken" in lines


def test_a_defect_keeps_its_traceback_and_ends_all():
    (code, err), (other, more) = ends(start("has a defect", "waits"))
    assert (code, other) == (1, 1)
    assert err.splitlines()[-1] == "ZeroDivisionError: by zero"
    assert more == "error: process 0 failed: ZeroDivisionError: by zero\n"


@pytest.mark.parametrize("victim", [0, 1])
def test_all_processes_end_if_one_is_killed(victim):
    started = start("waits", "waits")
    for process in started:
        assert process.stdout.readline() == "joined\n"
    started[victim].send_signal(signal.SIGKILL)
    results = ends(started)
    assert results[victim] == (-signal.SIGKILL, "")
    code, err = results[1 - victim]
    assert code == 1
    assert err.startswith(f"error: process {victim} is gone (")
    assert len(err.splitlines()) == 1


def test_processes_that_pause_together_do_not_take_each_other_for_dead():
    """Process 0 goes on first, and sees a sign of life that it has seen before the pause."""
    assert ends(start("pauses", "pauses")) == [(0, ""), (0, "")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((None, 2, None), "--num_processes=2 needs --coordinator"),
        ((None, None, 0), "--process_id=0 needs --coordinator"),
        (("node1:1234", None, 0), "needs --num_processes too"),
        (("node1:1234", 2, None), "needs --process_id too"),
        (("node1:1234", 0, 0), "--num_processes=0 must be at least 1"),
        (("node1:1234", 2, 2), "--process_id=2 must be from 0 to 1"),
        (("node1:1234", 2, -1), "--process_id=-1 must be from 0 to 1"),
        (("node1", 2, 0), "--coordinator=node1 is not host:port"),
        (("node1:", 2, 0), "is not host:port"),
        ((":1234", 2, 0), "is not host:port"),
        (("node1:port", 2, 0), "is not host:port"),
        (("node1:70000", 2, 0), "is not host:port"),
        (("node1:²", 2, 0), "is not host:port"),
        (("", 2, 0), "is not host:port"),
    ],
)
def test_inconsistent_flags_are_refused(flags, words):
    with pytest.raises(InputError, match=words), processes.join(*flags):
        pass


def test_one_process_needs_no_flags(capsys):
    with processes.join(None, None, None) as members:
        members.fail(InputError("a mistake"))
    members.leave()
    assert capsys.readouterr().err == "error: a mistake\n"
