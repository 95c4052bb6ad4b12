"""The script of long runs: what it reads of a process, and its table."""

import os
import subprocess
import sys
import threading

import pytest

from cfmlc_jax.errors import InputError
from scripts import endurance


def test_a_reading_counts_what_there_is(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "a").write_bytes(bytes(50))
    before = endurance.reading(tmp_path)
    assert (before["checkpoints"], before["metrics.jsonl"]) == (50, 0)
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        after = endurance.reading(tmp_path)
    finally:
        os.close(handle)
        child.communicate(b"\n")
        end.set()
        thread.join()
    assert after["threads"] - before["threads"] == 1
    assert after["processes"] - before["processes"] == 1
    assert after["file handles"] - before["file handles"] == 2  # and the pipe
    assert after["memory"] > 1e6
    assert after["workers' memory"] > before["workers' memory"]


def test_readings_are_kept_at_logs_of_steps(tmp_path):
    probe = endurance.Probe(tmp_path, None)
    probe.write_scalars(7, {"time/steps_per_second": 4.0})
    probe.write_scalars(7, {"val/average/mAP_voc": 50.0})
    (kept,) = endurance.readings(tmp_path, "step")
    assert (kept["step"], kept["time"]) == (7, 0.25)
    assert endurance.readings(tmp_path, "evaluation") == []


def test_readings_of_two_processes_do_not_mix(tmp_path):
    endurance._keep(tmp_path, {"evaluation": 1, "time": 9.0})
    for speed in (4.0, 2.0):
        probe = endurance.Probe(tmp_path, None)
        for step in (50, 100):
            probe.write_scalars(step, {"time/steps_per_second": speed})
    kept = endurance.readings(tmp_path, "step")
    assert [(values["step"], values["time"]) for values in kept] == [(50, 0.5), (100, 0.5)]
    assert endurance.readings(tmp_path, "evaluation") == [{"evaluation": 1, "time": 9.0}]


def test_evaluations_begin_their_readings_anew(tmp_path, monkeypatch):
    for counter in ("step", "evaluation"):
        endurance._keep(tmp_path, {counter: 7, "time": 9.0})
    monkeypatch.setattr(endurance.checkpoints, "find", lambda workdir: workdir)
    monkeypatch.setattr(endurance.evaluate, "evaluate_checkpoint", lambda *_: None)
    endurance._evaluate(2, tmp_path)
    assert [kept["evaluation"] for kept in endurance.readings(tmp_path, "evaluation")] == [1, 2]
    assert endurance.readings(tmp_path, "step") == [{"step": 7, "time": 9.0}]


def test_the_table_compares_start_and_end():
    kept = [{"step": n, "time": 0.1, "memory": 1e6 * (100 + n), "threads": 5} for n in range(100)]
    assert endurance.table(kept, "step").splitlines() == [
        "| | step 5 to 9 | step 95 to 99 |",
        "| --- | ---: | ---: |",
        "| memory, MB | 107 | 197 |",
        "| threads | 5 | 5 |",
        "| time, ms | 100 | 100 |",
    ]
    with pytest.raises(InputError, match="3 readings by step are too few"):
        endurance.table(kept[:3], "step")


def test_steps_are_whole_epochs():
    assert endurance.configuration(400, 0).train.epochs == 2
    with pytest.raises(InputError, match=r"^--steps=300 is not a multiple of 200, an epoch; try 400$"):
        endurance.configuration(300, 0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps=1800"], "--steps=1800 gives too few readings for a table; give at least 2000, or 0"),
        (
            ["--steps=0", "--evaluations=39"],
            "--evaluations=39 gives too few readings for a table; give at least 40",
        ),
        (["--workdir=s3://bucket/run"], "is an address, not a path on this machine"),
        (["--workdir=file"], "--workdir file/report cannot be created (Not a directory)"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_work(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(endurance, "_train", None)
    assert endurance.main(flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_workdir_at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert endurance.main(["--workdir=~/long", "--steps=0", "--evaluations=0"]) == 0
    assert (tmp_path / "home" / "long" / "report").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
