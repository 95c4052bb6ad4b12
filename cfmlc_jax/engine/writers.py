"""Metric writers with the interface of clu's `MetricWriter`, but without TensorFlow, which clu imports.

A clu writer can be used in their place.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.buckets import Address
from cfmlc_jax.errors import InputError


class MetricWriter(Protocol):
    """The part of clu's interface that a run uses."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the named numbers of a step."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the configuration, a flat dict."""

    def flush(self) -> None:
        """Make sure that everything so far is on disk."""

    def close(self) -> None:
        """Flush, and close files."""


class JsonlWriter:
    """Writes scalars as lines {"step": …, name: value, …} of a file; a non-finite value becomes null.

    On opening, it drops the lines that a resumed run will write again.

    Args:
        path: of the file.
        last_step: step of the checkpoint that the run resumes from.
        validated: whether the validation of that step is done, so that its line is kept.
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
        """Append one line."""
        values = {name: _number(value) for name, value in scalars.items()}
        files.append_text(self._path, json.dumps({"step": int(step)} | values) + "\n")

    def write_hparams(self, hparams):
        """Do nothing: the configuration is in the workdir's config.json."""

    def flush(self):
        """Put the lines into a bucket; every line is already in a local file."""
        files.flush(self._path)

    def close(self):
        """As `flush`: the file is only open while a line is written."""
        files.flush(self._path)


class TensorBoardWriter:
    """Writes TensorBoard event files into a folder, by tensorboardX (no TensorFlow).

    On opening, it marks the events after `last_step` as replaced.

    Raises:
        InputError: tensorboardX is not installed, or the folder is in a bucket.
    """

    def __init__(self, folder: Path, last_step: int):
        if isinstance(folder, Address):
            raise InputError(
                f"config.report.tensorboard cannot write to {folder}, because event files grow and objects cannot; "
                "leave it out, or take a local --workdir"
            )
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "config.report.tensorboard needs tensorboardX; pip install 'cfmlc_jax[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write_scalars(self, step, scalars):
        """Write one event per scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), int(step))

    def write_hparams(self, hparams):
        """Write the configuration as a text."""
        text = "\n".join(f"    {name}: {value}" for name, value in sorted(hparams.items()))
        self._writer.add_text("config", text, 0)

    def flush(self):
        """Write pending events."""
        self._writer.flush()

    def close(self):
        """Write pending events and close the file."""
        self._writer.close()


class MultiWriter:
    """One writer that passes each call to several."""

    def __init__(self, writers: Sequence[MetricWriter]):
        self._writers = tuple(writers)

    def write_scalars(self, step, scalars):
        """Pass on to each writer."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_hparams(self, hparams):
        """Pass on to each writer."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self):
        """Pass on to each writer."""
        for writer in self._writers:
            writer.flush()

    def close(self):
        """Pass on to each writer."""
        for writer in self._writers:
            writer.close()


def create(
    workdir: Path, *, last_step: int, validated: bool = True, tensorboard: bool, primary: bool
) -> MetricWriter:
    """The writer of a run: of metrics.jsonl, and of TensorBoard event files if asked for.

    Args:
        workdir: of the run.
        last_step: see `JsonlWriter`.
        validated: see `JsonlWriter`.
        tensorboard: write event files too.
        primary: this is the first process; the others write nothing.

    Raises:
        InputError: `tensorboard`, but tensorboardX is not installed.
    """
    if not primary:
        return MultiWriter(())
    writers: list[MetricWriter] = [JsonlWriter(workdir / "metrics.jsonl", last_step, validated=validated)]
    if tensorboard:
        writers.append(TensorBoardWriter(workdir / "tensorboard", last_step))
    return MultiWriter(writers)


def _lines(path):
    """The complete lines of the file, without one that a crash cut off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [line for line in text.split("\n")[:-1] if line]


def _number(value):
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None
