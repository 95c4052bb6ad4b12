"""Metric writers with the method names of clu's `MetricWriter`, without TensorFlow.

Any clu writer can take their place. (clu's own module imports TensorFlow.)
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.errors import InputError


class MetricWriter(Protocol):
    """The part of clu's interface that runs use."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Named numbers of a step."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """The configuration, flat."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def close(self) -> None:
        """Flush and release."""


class JsonlWriter:
    """Scalars as lines {"step": …, name: value, …} of a file; what is not a number becomes null.

    On opening, lines that a resumed run writes again are dropped.

    Args:
        path: of the file.
        last_step: of the checkpoint that the run resumes from.
        validated: whether that step's validation is done, and its line stays.
    """

    def __init__(self, path: Path, last_step: int, *, validated: bool = True):
        self._path = path
        records = ((line, json.loads(line)) for line in _lines(path))
        kept = [
            line
            for line, record in records
            if record["step"] < last_step
            or (record["step"] == last_step and (validated or "epoch" not in record))
        ]
        files.write_text(path, "".join(line + "\n" for line in kept))

    def write_scalars(self, step, scalars):
        """One line."""
        values = {name: _number(value) for name, value in scalars.items()}
        files.append_text(self._path, json.dumps({"step": int(step)} | values) + "\n")

    def write_hparams(self, hparams):
        """Nothing: the workdir's config.json has them."""

    def flush(self):
        """Nothing: every line is in the file."""

    def close(self):
        """Nothing: the file is open only while a line is written."""


class TensorBoardWriter:
    """Scalars as TensorBoard event files in a folder, by tensorboardX (no TensorFlow).

    On opening, events beyond `last_step` are marked as superseded.

    Raises:
        InputError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, last_step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "config.report.tensorboard needs tensorboardX; pip install 'cfmlc_jax[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write_scalars(self, step, scalars):
        """One event per scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), int(step))

    def write_hparams(self, hparams):
        """The configuration as a text."""
        text = "\n".join(f"    {name}: {value}" for name, value in sorted(hparams.items()))
        self._writer.add_text("config", text, 0)

    def flush(self):
        """Write pending events."""
        self._writer.flush()

    def close(self):
        """Write pending events and close the file."""
        self._writer.close()


class MultiWriter:
    """Several writers as one."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = tuple(writers)

    def write_scalars(self, step, scalars):
        """To each."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_hparams(self, hparams):
        """To each."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self):
        """Each."""
        for writer in self._writers:
            writer.flush()

    def close(self):
        """Each."""
        for writer in self._writers:
            writer.close()


def create(
    workdir: Path, *, last_step: int, validated: bool = True, tensorboard: bool, primary: bool
) -> MetricWriter:
    """The run's writer: metrics.jsonl always, event files if wanted; nothing on other processes.

    Args: as of `JsonlWriter`.

    Raises:
        InputError: event files are wanted and tensorboardX is missing.
    """
    if not primary:
        return MultiWriter(())
    writers: list[MetricWriter] = [JsonlWriter(workdir / "metrics.jsonl", last_step, validated=validated)]
    if tensorboard:
        writers.append(TensorBoardWriter(workdir / "tensorboard", last_step))
    return MultiWriter(writers)


def _lines(path):
    """Whole lines of the file: one that a crash cut off is not a record."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [line for line in text.split("\n")[:-1] if line]


def _number(value):
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None
