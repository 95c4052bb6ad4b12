"""The progress line and text tables."""

import re

import pytest

from cfmlc_jax.engine.progress import Progress, clock
from cfmlc_jax.results import tables


def test_line_and_rates(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(100, batch_size=8, done=10)
    now[0] += 4
    rates = progress.report(30, "loss 1.0")
    assert rates == {"steps_per_second": 5.0, "images_per_second": 40.0}
    assert capsys.readouterr().err == "step 30/100  loss 1.0  5.00 steps/s  40 images/s  ETA 0:14\n"


def test_waits_are_seconds_a_step_since_the_last_time(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(100, batch_size=1, done=2)
    for seconds in (3, 1):
        with progress.waiting("input"):
            now[0] += seconds
        with progress.waiting("device"):
            now[0] += 2
    assert progress.waits(6) == {"input_wait": 1.0, "device_wait": 1.0}
    assert progress.waits(8) == {"input_wait": 0.0, "device_wait": 0.0}


def test_pauses_do_not_count(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(10, batch_size=1)
    with progress.paused():
        now[0] += 50
    now[0] += 2
    assert progress.report(4, "")["steps_per_second"] == 2.0


def test_silent(capsys):
    progress = Progress(10, batch_size=1, silent=True)
    progress.report(1, "x")
    progress.note("y")
    captured = capsys.readouterr()
    assert captured.err + captured.out == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_markdown_is_aligned():
    table = tables.markdown(["name", "mAP"], [["whole", 97.123], ["x", float("nan")]])
    assert table.splitlines() == [
        "| name  |   mAP |",
        "| ----- | ----: |",
        "| whole | 97.12 |",
        "| x     |     – |",
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert re.fullmatch(r"(\|[^\n]*\|\n?)+", table)
