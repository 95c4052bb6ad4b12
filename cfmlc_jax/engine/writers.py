"""Metric writers with the interface of clu's `MetricWriter`, but without TensorFlow, which clu imports.

A clu writer can be used in their place.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.errors import BucketError, InputError, printable

METRICS = "metrics.jsonl"


class MetricWriter(Protocol):
    """The part of clu's interface that a run uses."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the named numbers of a step."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write the named images of a step, each uint8 [n, h, w, 3]."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write the named texts of a step, in Markdown."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the configuration, a flat dict."""

    def flush(self) -> None:
        """Make sure that everything so far is on disk."""

    def close(self) -> None:
        """Flush, and close files."""


# What a writer needs.
METHODS = ("write_scalars", "write_images", "write_texts", "write_hparams", "flush", "close")


class Written:
    """Counts lines and digests them."""

    def __init__(self) -> None:
        self._lines, self._digest = 0, hashlib.sha256()

    def add(self, *lines: str) -> None:
        """The next lines."""
        for line in lines:
            self._lines += 1
            self._digest.update(f"{line}\n".encode())

    def summary(self) -> dict[str, Any]:
        """The number of lines so far and their digest, as a checkpoint keeps them."""
        return {"lines": self._lines, "sha256": self._digest.hexdigest()}


class JsonlWriter:
    """Writes scalars as lines {"step": …, name: value, …} of a file; a non-finite value becomes null.

    On opening, it drops the lines that a resumed run will write again.

    Args:
        path: of the file.
        last_step: step of the checkpoint that the run resumes from.
        validated: whether the validation of that step is done, so that its line is kept.
        logged: what `logged` returned when that checkpoint was written; None: it was not kept.

    Attributes:
        kept: the lines that were not dropped, as dicts.
        loss: a line for the user if the file is not what it was at that checkpoint, because a part of it was lost or
            changed; else "". Nothing else has these lines.

    Raises:
        InputError: as `read_lines`; the file is unchanged.
    """

    def __init__(
        self, path: Path, last_step: int, *, validated: bool = True, logged: Mapping[str, Any] | None = None
    ):
        self._path = path
        kept = [
            (line, record)
            for line, record in read_lines(path)
            if record["step"] < last_step
            or (record["step"] == last_step and (validated or "epoch" not in record))
        ]
        self.kept: list[dict[str, Any]] = [record for _, record in kept]
        files.write_text(path, "".join(line + "\n" for line, _ in kept))
        lines = [line for line, _ in kept]
        self.loss = "" if logged is None else _loss(path, lines, logged)
        self._written = Written()
        self._written.add(*lines)

    def logged(self) -> dict[str, Any]:
        """What a checkpoint keeps of the lines so far: their number and digest."""
        return self._written.summary()

    def write_scalars(self, step, scalars):
        """Append one line."""
        values = {name: _number(value) for name, value in scalars.items()}
        line = json.dumps({"step": int(step)} | values)
        files.append_text(self._path, line + "\n")
        self._written.add(line)

    def write_images(self, step, images):
        """Do nothing: a run that has images keeps them in its workdir."""

    def write_texts(self, step, texts):
        """Do nothing: the results are in the workdir's report/."""

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
    """

    def __init__(self, folder: Path, last_step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1)

    def write_scalars(self, step, scalars):
        """Write one event per scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), int(step))

    def write_images(self, step, images):
        """Write one event per image."""
        for name, batch in images.items():
            self._writer.add_images(name, np.asarray(batch), int(step), dataformats="NHWC")

    def write_texts(self, step, texts):
        """Write one event per text."""
        for name, text in texts.items():
            self._writer.add_text(name, text, int(step))

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


def finite(scalars: Mapping[str, Any]) -> dict[str, float]:
    """The scalars that are finite numbers, as floats."""
    numbers = {name: _number(value) for name, value in scalars.items() if value is not None}
    return {name: float(number) for name, number in numbers.items() if number is not None}


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The complete lines of a `JsonlWriter`'s file, each as text and as a dict, without one that a crash cut off.

    Raises:
        InputError: the file cannot be read, or a line is no object of numbers with a step.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except BucketError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error), "restore the file, or remove it") from error
    lines = enumerate(text.split("\n")[:-1], 1)
    return [(line, _record(path, number, line)) for number, line in lines if line]


def _loss(path, lines, logged):
    """A line for the user if the lines of a file do not begin with those of which `logged` is the summary; else ""."""
    written = Written()
    written.add(*lines[: logged["lines"]])
    found = written.summary()
    if found == logged:
        return ""
    changed = (
        "lines have changed"
        if found["lines"] == logged["lines"]
        else f"{found['lines']} of {logged['lines']} lines are left"
    )
    return (
        f"warning: {printable(str(path))}: {changed} since the checkpoint was written; the training is as good as before, "
        "but curves and tables lack what is lost. If you have a copy, stop, put it back, and resume"
    )


def _record(path, number, line) -> dict[str, Any]:
    way_out = "restore the line, or remove it"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"line {number}: {error}", way_out) from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise _damaged(path, f"line {number} is not an object with a step", way_out)
    wrong = [name for name, value in record.items() if not isinstance(value, int | float | None)]
    if wrong:
        raise _damaged(path, f"line {number}: {wrong[0]} is not a number", way_out)
    return record


def _damaged(path, reason, way_out):
    return InputError(f"{path} is damaged ({' '.join(reason.split())}); {way_out}")


def _number(value):
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None
