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


def test_steps_are_whole_epochs(capsys):
    assert endurance.configuration(400, 0).train.epochs == 2
    assert endurance.main(["--steps=300"]) == 1
    assert capsys.readouterr().err == "error: --steps=300 is not a multiple of 200, an epoch; try 400\n"
