"""Metric writers."""

import json
import struct

import jax
import numpy as np
import pytest

from cfmlc_jax.engine import writers
from cfmlc_jax.engine.reporting import Reporting
from cfmlc_jax.errors import InputError


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_have_numbers_and_null_for_non_finite_values(tmp_path):
    writer = writers.JsonlWriter(tmp_path / "metrics.jsonl", last_step=0)
    writer.write_scalars(1, {"loss": 2.5, "mAP": float("nan")})
    writer.write_scalars(2, {"loss": 1.5})
    writer.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 2.5, "mAP": None},
        {"step": 2, "loss": 1.5},
    ]


def test_resuming_drops_a_truncated_line_and_lines_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 1}\n{"step": 3, "a": 1}\n{"step": 4, "a')
    writer = writers.JsonlWriter(path, last_step=2)
    writer.write_scalars(3, {"a": 7})
    writer.close()
    assert lines(path) == [{"step": 1, "a": 1}, {"step": 2, "a": 1}, {"step": 3, "a": 7}]


def test_a_validation_that_is_done_again_is_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "train/loss": 1}\n{"step": 2, "epoch": 1, "val": 5}\n')
    for validated, kept in ((True, 2), (False, 1)):
        writers.JsonlWriter(path, last_step=2, validated=validated).close()
        assert len(lines(path)) == kept
    assert "train/loss" in lines(path)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines, None),
        (
            lambda lines: [*lines, '{"step": 3}'],
            None,
        ),  # written after the checkpoint, of a step before it or not
        (lambda lines: lines[:1], "1 of 2 lines are left"),
        (lambda lines: [], "0 of 2 lines are left"),
        (lambda lines: ['{"step": 1, "a": 2}', lines[1]], "lines have changed"),
    ],
)
def test_lost_lines_are_told(tmp_path, change, words):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path, last_step=0)
    writer.write_scalars(1, {"a": 1})
    writer.write_scalars(2, {"a": float("nan")})
    path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
    resumed = writers.JsonlWriter(path, last_step=2, logged=writer.logged())
    assert (resumed.loss == "") if words is None else (f"metrics.jsonl: {words} since" in resumed.loss)
    # From here on the lines that are left count.
    assert writers.JsonlWriter(path, last_step=2, logged=resumed.logged()).loss == ""
    assert writers.JsonlWriter(path, last_step=2).loss == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"step": 1}\n\x00\x00\x00\n', "line 2: Expecting value"),
        (b'{"step": 1}\n{"loss": 2}\n', "line 2 is not an object with a step"),
        (b'{"step": 1, "loss": "low"}\n', "line 1: loss is not a number"),
        (b'{"step": 1}\n\xff\n', "'utf-8' codec can't decode"),
        (b"[" * 100_000 + b"\n", "line 1: .*recursion"),
    ],
)
def test_a_damaged_file_is_not_replaced(tmp_path, content, words):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"metrics\.jsonl is damaged \({words}.*; restore .*, or remove it"
    ) as error:
        writers.JsonlWriter(path, last_step=9)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra 'tensorboard' is not installed")
    with Reporting(("tensorboard",), hparams={"seed": 0}) as reporting:
        reporting.open(tmp_path, last_step=0)
        reporting.write_scalars(1, {"loss": 2.5})
        reporting.write_images(1, {"picture": np.zeros((1, 4, 4, 3), np.uint8)})
        reporting.flush()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    assert b"seed" in events.read_bytes()
    assert b"picture" in events.read_bytes()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]


def test_a_resumed_run_replaces_later_events(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra 'tensorboard' is not installed")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with Reporting(("tensorboard",)) as reporting:
        reporting.open(tmp_path, last_step=7)
        reporting.write_scalars(8, {"loss": 2.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, events = path.read_bytes(), []
    while content:  # records of a length, its checksum, the event and its checksum
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    (start,) = (event for event in events if event.session_log.status == SessionLog.START)
    assert start.step == 8


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Reporting(("tensorboard",)) as reporting:
        reporting.open(tmp_path, last_step=0)
        reporting.write_scalars(1, {"loss": 2.5})
        reporting.write_images(1, {"picture": np.zeros((1, 4, 4, 3), np.uint8)})
    assert list(tmp_path.iterdir()) == []
