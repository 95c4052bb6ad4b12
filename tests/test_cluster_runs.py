"""Runs of several processes that a cluster started: one is asked to end or killed, all end, and the run resumes."""

import json
import signal
import time

import launchers
import pytest

# The command, in which one process sends itself a signal: TEST_SIGNAL is "place process signal".
RUN = """
import os, sys, time
import jax
from cfmlc_jax import cli, main, processes
from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.classify import scoring
from cfmlc_jax.engine.step import TrainStep

if "TEST_SILENCE" in os.environ:
    processes.SIGN_SECONDS, processes.SILENCE_SECONDS = 0.3, float(os.environ["TEST_SILENCE"])
place, process, number = os.environ.get("TEST_SIGNAL", "nowhere -1 0").split()
calls = []

def send():
    if jax.process_index() == int(process):
        while place == "training" and not os.path.exists(os.environ["TEST_SAVED"]):
            time.sleep(0.01)
        os.kill(os.getpid(), int(number))

def signalled(function, nth, *, within):
    def call(*args, **kwargs):
        calls.append(nth)
        if len(calls) == nth and not within:
            send()
        result = function(*args, **kwargs)
        if len(calls) == nth and within:
            send()
        return result
    return call

if place == "training":
    TrainStep.__call__ = signalled(TrainStep.__call__, 10, within=False)
if place == "save":  # its files are written in the background
    Checkpoints.save = signalled(Checkpoints.save, 2, within=True)
if place in ("validation", "evaluation"):
    nth = 1 if place == "validation" else 2
    scoring.score_readable = signalled(scoring.score_readable, nth, within=False)
cli.end(main.main())
"""
TINY = [
    f"--config={launchers.ROOT / 'tests' / 'configs' / 'tiny.py'}",
    # Only process 0 keeps compiled programs: those that are compiled the fastest.
    "--config.method=whole",
    "--config.effect.kinds=()",
    "--config.train.epochs=1",
]


def start(launcher, workdir, *flags, **options):
    options["TEST_SAVED"] = str(workdir / "checkpoints" / "7")
    return launchers.start(launcher, RUN, *TINY, f"--workdir={workdir}", *flags, **options)


def printed(results):
    """How the processes ended, by the lines on stderr of all; process 0 prints its progress there, too."""
    lines = [line for _, _, err in results for line in err.splitlines()]
    return [line for line in lines if line.startswith(("error", "asked", "Traceback")) or "Error: " in line]


def left(workdir):
    """The files in a workdir; a process may create the empty folder when another has cleaned up."""
    return [path for path in workdir.rglob("*") if path.is_file()]


def codes(results):
    return [code for code, _, _ in results]


def finish_alone(workdir, *flags, last=20):
    """The run of one process without a cluster, to its end."""
    ((code, out, err),) = launchers.ends(start(None, workdir, *flags, count=1), 300)
    assert code == 0, err
    assert "resuming at step" in out
    assert json.loads((workdir / "checkpoints" / str(last) / "rank.json").read_text())["finished"]
    assert (workdir / "report" / "index.html").exists()
    assert not (workdir / ".lock").exists()


def test_a_run_of_srun_is_preempted_killed_and_resumed(tmp_path):
    longer = "--config.train.epochs=2"  # 40 steps: those until all have agreed to end, and then two saves
    # SIGTERM to one of them: all save the same step.
    started = start("slurm", tmp_path, longer, TEST_SIGNAL=f"training 1 {int(signal.SIGTERM)}")
    results = launchers.ends(started, 300)
    assert codes(results) == [143, 143], printed(results)
    (line,) = printed(results)
    assert line.startswith("asked to end; saved step ")
    assert line.endswith("; the same command resumes")
    step = line.removeprefix("asked to end; saved step ").partition(" ")[0]
    assert (tmp_path / "checkpoints" / step / "model").is_dir()
    assert not (tmp_path / ".lock").exists()
    # SIGKILL in a save, started by another launcher.
    killed = f"save 1 {int(signal.SIGKILL)}"
    started = start("open_mpi", tmp_path, longer, TEST_SIGNAL=killed, TEST_SILENCE="3")
    results = launchers.ends(started, 300)
    assert codes(results) == [1, -signal.SIGKILL], printed(results)
    (line,) = printed(results)
    assert line.startswith("error: process 1 on ")
    assert "is gone (no sign of life for 3 s)" in line
    assert f"resuming at step {step}" in results[0][1]
    assert not (tmp_path / ".lock").exists()
    finish_alone(tmp_path, longer, last=40)


def ended_after(started, victim):
    """Seconds between the end of the victim and that of the last of the others."""
    started[victim].wait(300)
    since = time.monotonic()
    for process in started:
        process.wait(120)
    return time.monotonic() - since


@pytest.mark.slow(reason="the seconds after which a process counts as dead, and runs of four processes")
@pytest.mark.parametrize("place", ["training", "validation", "evaluation", "save"])
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (4, 2)])
def test_all_end_within_a_minute_if_one_is_killed(tmp_path, place, count, victim, capsys):
    started = start("slurm", tmp_path, count=count, TEST_SIGNAL=f"{place} {victim} {int(signal.SIGKILL)}")
    seconds = ended_after(started, victim)
    with capsys.disabled():
        print(f"\n{place}, process {victim} of {count}: all ended {seconds:.0f} s after it")
    results = launchers.ends(started)
    assert seconds < 60
    expected = [1] * count
    expected[victim] = -signal.SIGKILL
    assert codes(results) == expected, printed(results)
    lines = printed(results)
    # Without process 0 the others cannot agree who prints.
    assert len(lines) == (count - 1 if victim == 0 else 1), lines
    assert all(f"process {victim}" in line and "is gone (" in line for line in lines)
    finish_alone(tmp_path)


@pytest.mark.slow(reason="runs of four processes")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.model.name=resnet19"], "resnet19"),
        (["--config.data.source=coco", "--config.data.root=nowhere"], "nowhere"),
        (["--config.train.batch_size=6"], "6 is not divisible by the 4 devices"),
        (["--wordir=run"], "wordir"),
    ],
)
def test_mistakes_of_four_processes_are_printed_once(tmp_path, flags, words):
    results = launchers.ends(start("slurm", tmp_path / "run", *flags, count=4))
    assert codes(results) == [1] * 4
    (line,) = printed(results)
    assert words in line
    assert left(tmp_path / "run") == []


@pytest.mark.slow(reason="a run of four processes")
def test_data_that_one_machine_lacks_is_an_error_of_that_process(tmp_path):
    workdir = tmp_path / "run"
    program = """
import os
if os.environ["SLURM_PROCID"] == "2":
    from cfmlc_jax.classify import build
    from cfmlc_jax.errors import InputError
    def no_sources(*args, **kwargs):
        raise InputError("photos/train.csv is missing")
    build.open_sources = no_sources
"""
    started = launchers.start("slurm", program + RUN, *TINY, f"--workdir={workdir}", count=4)
    results = launchers.ends(started)
    assert codes(results) == [1] * 4
    (line,) = printed(results)
    assert line.startswith("error: process 2 on ")
    assert line.endswith("failed: photos/train.csv is missing")
    assert left(workdir) == []


# The first process is late with the last file of the generated records; the others, which keep no programs, compile longer.
SLOW_DISK = """
import time
from cfmlc_jax.data.sources import counterfactuals
write_index = counterfactuals.write_index
def slowly(*arguments, **options):
    time.sleep(20)
    write_index(*arguments, **options)
counterfactuals.write_index = slowly
"""


@pytest.mark.slow(reason="two processes compile a generator and two classifiers")
def test_two_processes_train_a_generator_and_its_classifiers(tmp_path):
    config = launchers.ROOT / "tests" / "configs" / "cgn_tiny.py"
    names = ("heads", "plain")  # the first one begins with the records
    flags = [f"--config={config}", f"--config.classifiers.names={names}", f"--workdir={tmp_path}"]
    results = launchers.ends(launchers.start("slurm", SLOW_DISK + RUN, *flags), 600)
    assert codes(results) == [0, 0], printed(results)
    assert printed(results) == []
    accuracies = json.loads((tmp_path / "report" / "mechanisms.json").read_text())
    assert tuple(accuracies) == names
    assert accuracies["plain"]["train"] > 50 > accuracies["plain"]["test"]
    for folder in (tmp_path, *(tmp_path / name for name in names)):
        assert "been written yet" not in (folder / "report" / "index.html").read_text()
    # A finished run prints its table again, by one process, too.
    ((code, out, err),) = launchers.ends(launchers.start(None, RUN, *flags, count=1), 600)
    assert code == 0, err
    assert "compiling the training step" not in out
    assert f"{accuracies['plain']['test']:.1f}" in out
