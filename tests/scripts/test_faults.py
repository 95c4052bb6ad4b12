"""The campaign of faults: what it counts as lost, and that its faults hit."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax.data.sources.table import Table
from scripts.faults import __main__ as command
from scripts.faults import subjects, trials
from scripts.faults.ending import Ending, read
from scripts.faults.subjects import SUBJECTS, Ended, Runner, survivors
from scripts.faults.victim import Fault, Victim

ROOT = Path(__file__).parents[2]
# A process that writes three files in a folder, with a fault.
WRITER = """
import os, sys
from pathlib import Path
from scripts.faults.victim import Fault, Victim
folder, note, what, event, repeat = sys.argv[1:]
fault = Fault(what, event=int(event), repeat=bool(int(repeat)))
victim = Victim(fault, folder, Path(note))
victim.start()
for name in "abc":
    try:
        open(os.path.join(folder, name), "w").close()
    except OSError as error:
        print(name, error.strerror)
open(note + ".elsewhere", "w").close()
open(os.path.join(folder, "a")).close()
victim.end()
"""


def written(tmp_path, what, event, *, repeat=True):
    """The files of a process with a fault, its exit code, its output and its note."""
    folder, note = tmp_path / "run", tmp_path / "note"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), str(note), what, str(event), str(int(repeat))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return (
        sorted(path.name for path in folder.iterdir()),
        done.returncode,
        done.stdout,
        json.loads(note.read_text()),
    )


def test_a_signal_comes_before_its_change_of_a_file(tmp_path):
    names, code, _, note = written(tmp_path, "SIGKILL", 1)
    assert names == ["a"]
    assert code == -signal.SIGKILL
    assert note == {"place": "imports", "event": "open b"}


@pytest.mark.parametrize(
    ("repeat", "names", "output"),
    [
        (True, ["a"], "b No space left on device\nc No space left on device\n"),
        (False, ["a", "c"], "b No space left on device\n"),
    ],
)
def test_an_error_is_raised_once_or_from_then_on(tmp_path, repeat, names, output):
    assert written(tmp_path, "ENOSPC", 1, repeat=repeat)[:3] == (names, 0, output)


def test_a_slow_disk_is_a_hit(tmp_path):
    names, code, output, note = written(tmp_path, "delay", 99)
    assert (names, code, output, note) == (["a", "b", "c"], 0, "", {"place": "imports", "event": "open a"})


def test_changes_of_files_are_counted(tmp_path):
    note = written(tmp_path, "SIGKILL", 99)[3]
    assert note == {"events": ["open a", "open b", "open c"]}


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=False).returncode != 0,
    reason="this system lets nobody mount in a namespace of its own",
)
@pytest.mark.parametrize(
    ("disk", "left", "error"),
    [
        ("size=8k", ["a", "b"], errno.ENOSPC),
        ("nr_inodes=2", ["a"], errno.ENOSPC),  # one is the folder's
        ("read-only", ["before"], errno.EROFS),
        ("size=9M", ["a", "b"], 0),
    ],
)
def test_disks(tmp_path, disk, left, error):
    folder, rest = tmp_path / "run", tmp_path / "rest"
    folder.mkdir()
    if disk == "read-only":
        (folder / "before").touch()
    write = """
import sys
try:
    for name, size in ("a", 8000), ("b", 80_000):
        with open(f"{sys.argv[1]}/{name}", "wb", buffering=0) as file:
            if file.write(bytes(size)) < size:
                sys.exit(1)
except OSError as error:
    sys.exit(error.errno)
"""
    words = [*subjects.on_disk(disk, folder, rest), sys.executable, "-c", write, str(folder)]
    assert subprocess.run(words, check=False).returncode == error
    assert sorted(path.name for path in rest.iterdir()) == left
    assert not (folder / "a").exists()


def test_the_clock_jumps(tmp_path, monkeypatch):
    before = time.time()
    monkeypatch.setattr(time, "time", time.time)  # put back afterwards
    Victim(Fault("clock", seconds=-3600.0), str(tmp_path), tmp_path / "note").act()
    assert before - 3700 < time.time() < before - 3500


@pytest.fixture
def run(tmp_path):
    """A workdir as a run leaves it, without checkpoints."""
    folder = tmp_path / "run"
    (folder / "report").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0, "time/steps_per_second": 3.0}\n')
    np.savez(folder / "report" / "scores.npz", scores=np.arange(3.0))
    (folder / "report" / "index.html").write_text("seconds: 1")
    return folder


def test_times_are_no_difference(run):
    expected = read(run)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0, "time/steps_per_second": 4.0}\n')
    (run / "report" / "index.html").write_text("seconds: 2")
    assert read(run).differences(expected) == []


def test_differences_are_named(run):
    expected = read(run)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.1}\n{"step": 2}\n')
    np.savez(run / "report" / "scores.npz", scores=np.arange(3.0) + 1e-12)
    (run / "report" / ".results.json.12.tmp").touch()
    (run / "config.json").unlink()
    (run / "damaged").mkdir()
    (run / "damaged" / "7").touch()  # kept on purpose
    assert read(run).differences(expected) == [
        "config.json is only in one",
        "metrics.jsonl line 1 differs",
        "metrics.jsonl line 2 is only in one",
        "report/scores.npz differs",
        "left: report/.results.json.12.tmp",
        "missing: config.json",
    ]
    assert read(run).differences(expected, same_numbers=False) == [
        "left: report/.results.json.12.tmp",
        "missing: config.json",
    ]


def test_the_place_of_a_run_is_no_difference(run, tmp_path):
    (run / "config.json").write_text(json.dumps({"records": str(run / "counterfactuals")}))
    expected = read(run)
    moved = run.rename(tmp_path / "moved")
    assert read(moved).differences(expected) == ["config.json differs"]
    (moved / "config.json").write_text(json.dumps({"records": str(moved / "counterfactuals")}))
    assert read(moved).differences(expected) == []


def test_lines_of_which_a_run_said_that_they_are_lost_are_not_compared(run):
    expected = read(run)
    (run / "metrics.jsonl").write_text("")
    assert read(run).differences(expected) == ["metrics.jsonl line 1 is only in one"]
    assert read(run).differences(expected, without="metrics.jsonl") == []
    (run / "metrics.jsonl").unlink()
    assert read(run).differences(expected, without="metrics.jsonl") == ["missing: metrics.jsonl"]


def test_the_configuration_of_a_run_with_other_workers_is_not_compared(run):
    (run / "plain").mkdir()
    (run / "plain" / "config.json").write_text("{}")
    expected = read(run)
    for path in (run / "config.json", run / "plain" / "config.json"):
        path.write_text('{"workers": 2}')
    assert read(run).differences(expected) == ["config.json differs", "plain/config.json differs"]
    assert read(run).differences(expected, without="config.json") == []


@pytest.mark.parametrize(
    ("ended", "expected", "problem"),
    [
        (Ended(-9, "", 1.0), -9, None),
        (Ended(143, "asked to end", 1.0), 143, None),
        (Ended(-15, "", 1.0), 143, None),  # before the command has its handlers
        (Ended(1, "error: No space left", 1.0), 1, None),
        (Ended(1, "done", 1.0), 1, "exit code 1 without a line that says why"),
        (Ended(-11, "step 3", 1.0), 143, "exit code -11: step 3"),
        (Ended(1, "Traceback (most recent call last)\nerror: x", 1.0), 1, "traceback: error: x"),
    ],
)
def test_bad_ends(ended, expected, problem):
    assert trials._bad_end(ended, expected) == ([problem] if problem else [])


def test_every_damage_changes_a_file():
    content = bytes(range(10))
    for name, damage in trials.DAMAGES.items():
        assert damage(content) != content, name


def test_processes_that_are_left_are_found(tmp_path):
    runner = Runner(SUBJECTS["pat"], tmp_path / "trial", tmp_path)
    process = subprocess.Popen(["sleep", "60"], env=runner.environment())
    try:
        until = time.monotonic() + 30
        # Its environment appears a moment after the process.
        while not (alive := survivors(runner.mark, patience=0.0)) and time.monotonic() < until:
            time.sleep(0.01)
        assert alive == ["sleep 60 "]
    finally:
        process.kill()
        process.wait()
    assert survivors(runner.mark, patience=0.0) == []


def test_shared_memory_that_is_left_is_found():
    before = subjects.shared_memory()
    block = shared_memory.SharedMemory(create=True, size=100)
    name = block.name.lstrip("/")
    try:  # other programs of this machine have blocks, too
        assert name not in subjects.unused(before, patience=0.0)  # this process uses it
        block.close()
        assert name in subjects.unused(before, patience=0.1)
    finally:
        block.unlink()
    assert name not in subjects.unused(before, patience=0.0)


def test_semaphores_in_use_are_not_taken_for_left():
    before = subjects.shared_memory()
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    name = f"sem.{semaphore._semlock.name.lstrip('/')}"
    assert name in subjects.shared_memory() - before
    assert name not in subjects.unused(before, patience=0.0)


def test_photos_are_written_anew_and_read(tmp_path):
    runner = Runner(SUBJECTS["photos"], tmp_path, tmp_path / "programs")
    runner.restore_data()
    source = Table(runner.data, "train")
    assert (len(source), sorted(source.class_names)) == (48, ["blue", "green", "red"])
    first = {path: path.read_bytes() for path in runner.data.rglob("*.*")}
    (runner.data / "train.csv").unlink()
    runner.restore_data()
    assert {path: path.read_bytes() for path in runner.data.rglob("*.*")} == first
    assert f"--config.data.root={runner.data}" in runner.subject.command(runner.workdir, runner.data)


def test_trials_are_the_same_in_every_command(tmp_path):
    for step in ("7", "14"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "file").write_text(step)
    undisturbed = trials.Undisturbed(Ending(), 10.0, [f"open {number}" for number in range(50)])
    setting = trials.Setting(undisturbed, tmp_path, 3, seed=0)
    for name, campaign in trials.CAMPAIGNS.items():
        names = [trial.name for trial in campaign(setting)]
        assert names == [trial.name for trial in campaign(setting)]
        assert len(names) == len(set(names)), name


def test_lost_trials_are_listed_and_fail_the_command(tmp_path, monkeypatch, capsys):
    rows = [
        {"system": "pat", "campaign": "moments", "trial": "a", "verdict": "survived", "problems": []},
        {"system": "pat", "campaign": "moments", "trial": "b", "verdict": "lost", "problems": ["x differs"]},
    ]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["faults", "table", f"--workdir={tmp_path}"])
    assert command.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split("|")[1:-1] == [
        f" {cell} "
        for cell in ("moments", "pat   ", "    2", "       1", "     0", "      0", "        0", "   1")
    ]
    assert lines[-1] == "- pat, b: x differs"


@pytest.mark.parametrize("other", [{"code": "of yesterday"}, {"cores": 1000}])
def test_trials_are_not_compared_with_a_run_under_other_conditions(tmp_path, other):
    stored = tmp_path / "pat" / "undisturbed" / "undisturbed.json"
    stored.parent.mkdir(parents=True)
    conditions = command._conditions() | other
    content = {"conditions": conditions, "parts": {}, "paths": [], "seconds": 1, "events": []}
    stored.write_text(json.dumps(content))
    arguments = [sys.executable, "-m", "scripts.faults", "moments", "--system=pat", f"--workdir={tmp_path}"]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: {stored}: ")
    assert "another --workdir" in ended.stderr
    assert not (tmp_path / "trials.jsonl").exists()
