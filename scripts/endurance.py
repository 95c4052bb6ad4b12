"""What long use of one process costs: memory, file handles, threads and time of a step, at its start and at its end.

    python -m scripts.endurance --workdir=/tmp/long [--steps=20000] [--evaluations=200]

Trains a tiny network on generated scenes for so many steps, in epochs of 200, with a worker process, a checkpoint and a
validation each epoch; then evaluates its checkpoint in full as often as asked. Readings go to WORKDIR/readings.jsonl,
where they replace those of an earlier process, and at the end the first and the last tenth of them are compared in a
Markdown table. SIGTERM ends the training early; the table is then of the steps so far.
Exit codes: 0 done; 1 an error, printed in one line.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.flags
import jax
import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import cli, files
from cfmlc_jax import config as configs
from cfmlc_jax.classify import evaluate
from cfmlc_jax.classify.train import train
from cfmlc_jax.config import shipped
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.reporting import Reporting
from cfmlc_jax.errors import InputError
from scripts.benchmark import memory

READINGS = "readings.jsonl"
STEPS_PER_EPOCH, BATCH_SIZE, LOG_EVERY = 200, 8, 50
LEAST = 40  # readings in a table
# The unit of each reading, and the factor from what is stored to it.
UNITS: dict[str, tuple[str, float]] = {
    "memory": ("MB", 1e-6),
    "workers' memory": ("MB", 1e-6),
    "file handles": ("", 1),
    "threads": ("", 1),
    "processes": ("", 1),
    "shared memory": ("MB", 1e-6),
    "time": ("ms", 1e3),
    "metrics.jsonl": ("kB", 1e-3),
    "checkpoints": ("MB", 1e-6),
}


def reading(workdir: Path) -> dict[str, float]:
    """What this process and its children use now, bytes and counts, and what is in the workdir."""
    children = [Path(f"/proc/{number}") for number in memory.below(os.getpid())]
    return {
        "memory": _resident(Path("/proc/self")),
        "workers' memory": sum(map(_resident, children)),
        "file handles": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": 1 + len(children),
        "shared memory": _shared(),
        "metrics.jsonl": _size(workdir / "metrics.jsonl"),
        "checkpoints": sum(_size(path) for path in (workdir / "checkpoints").rglob("*")),
    }


def _resident(process: Path) -> int:
    with contextlib.suppress(OSError):
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0  # it has ended


def _shared() -> int:
    """Bytes of the blocks of shared memory that this process maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line}
    return sum(_size(Path(path)) for path in mapped)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size if path.is_file() else 0
    return 0  # removed in between


class Probe:
    """A metric writer that keeps a reading at each log of the training. The first one replaces those of another process."""

    def __init__(self, workdir: Path, config: Any):
        self._workdir = workdir
        self._is_first = True

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep a reading, if the numbers are of steps."""
        speed = scalars.get("time/steps_per_second")
        if speed:
            if self._is_first:
                _forget(self._workdir, "step")
            self._is_first = False
            _keep(self._workdir, {"step": step, "time": 1 / speed} | reading(self._workdir))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Nothing: images are not counted."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Nothing: texts are not counted."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Nothing: the configuration is the same throughout."""

    def flush(self) -> None:
        """Nothing: every reading is written at once."""

    def close(self) -> None:
        """Nothing is open."""


def _keep(workdir: Path, values: Mapping[str, float]) -> None:
    files.append_text(workdir / READINGS, json.dumps(values) + "\n")


def _forget(workdir: Path, counter: str) -> None:
    """Remove the readings of a counter: those of two processes do not belong in one table."""
    others = [values for values in _all_readings(workdir) if counter not in values]
    files.write_text(workdir / READINGS, "".join(json.dumps(values) + "\n" for values in others))


def readings(workdir: Path, counter: str) -> list[dict[str, float]]:
    """The readings of the training (counter "step") or of the evaluations (counter "evaluation")."""
    return [values for values in _all_readings(workdir) if counter in values]


def _all_readings(workdir):
    path = workdir / READINGS
    return list(map(json.loads, path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def table(kept: Sequence[Mapping[str, float]], counter: str) -> str:
    """A Markdown table of medians: of the second twentieth of the readings, after the start, and of the last.

    Raises:
        InputError: there are fewer than `LEAST` readings.
    """
    if len(kept) < LEAST:
        raise InputError(f"{len(kept)} readings by {counter} are too few for a table; give a larger number")
    part = len(kept) // 20
    windows = [kept[part : 2 * part], kept[-part:]]
    heads = [f"{counter} {window[0][counter]:.0f} to {window[-1][counter]:.0f}" for window in windows]
    lines = [f"| | {heads[0]} | {heads[1]} |", "| --- | ---: | ---: |"]
    for name, (unit, factor) in UNITS.items():
        if name in kept[0]:
            values = [factor * float(np.median([values[name] for values in window])) for window in windows]
            title = f"{name}, {unit}" if unit else name
            lines.append(f"| {title} | " + " | ".join(f"{value:,.0f}" for value in values) + " |")
    return "\n".join(lines)


def configuration(steps: int, workers: int) -> Any:
    """The configuration of a training of so many steps.

    Raises:
        InputError: the steps are not whole epochs.
    """
    if steps % STEPS_PER_EPOCH:
        raise InputError(
            f"--steps={steps} is not a multiple of {STEPS_PER_EPOCH}, an epoch; "
            f"try {-(-steps // STEPS_PER_EPOCH) * STEPS_PER_EPOCH}"
        )
    changes = {
        "data.scenes.num_train": STEPS_PER_EPOCH * BATCH_SIZE,
        "data.scenes.num_test": 40,
        "data.test_splits": ("test_iid",),
        "data.workers": workers,
        "views.image_size": 32,
        "train.batch_size": BATCH_SIZE,
        "train.epochs": steps // STEPS_PER_EPOCH,
        "train.early_stop": False,
        "train.log_every": LOG_EVERY,
        "evaluate.batch_size": 40,
        "effect.alphas": (0.5,),
    }
    config = configs.validate(shipped.get_config("scenes:smoke"))
    return configs.on_platform(configs.replaced(config, changes), jax.default_backend())


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    _run(_parse(arguments))
    return 0


def _parse(arguments):
    parser = cli.Parser(prog="python -m scripts.endurance", description=__doc__)
    parser.add_argument(
        "--workdir", type=files.local_path, help="of the training (default: a temporary folder)"
    )
    parser.add_argument(
        "--steps", type=cli.whole_number(0), default=20_000, help="0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--evaluations", type=cli.whole_number(0), default=200, help="0: none (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=cli.whole_number(0), default=1, help="that read (default: %(default)s)"
    )
    flags = parser.parse_args(arguments)
    for name, given, least in (
        ("steps", flags.steps, LEAST * LOG_EVERY),
        ("evaluations", flags.evaluations, LEAST),
    ):
        if 0 < given < least:
            raise InputError(
                f"--{name}={given} gives too few readings for a table; give at least {least}, or 0 for none"
            )
    return flags


def _run(flags: argparse.Namespace) -> None:
    absl.flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for its flags
    with contextlib.ExitStack() as stack:
        workdir = flags.workdir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files.create_folder(workdir / "report", "--workdir")
        if flags.steps:
            _train(flags, workdir)
            print(f"\n{table(readings(workdir, 'step'), 'step')}\n", flush=True)
        if flags.evaluations:
            _evaluate(flags.evaluations, workdir)
            print(f"\n{table(readings(workdir, 'evaluation'), 'evaluation')}\n", flush=True)


def _train(flags, workdir):
    config = configuration(flags.steps, flags.workers)
    instruments = Instruments(Reporting(["scripts.endurance:Probe"], config=config))
    with instruments.reporting:
        try:
            train(config, workdir, print, instruments)
        except Preempted as ended:
            print(ended)


def _evaluate(count: int, workdir: Path) -> None:
    path = checkpoints.find(workdir)
    with tempfile.TemporaryDirectory() as folder:
        _forget(workdir, "evaluation")
        for number in range(1, count + 1):
            start = time.perf_counter()
            evaluate.evaluate_checkpoint(path, None, Path(folder), lambda line: None)
            seconds = time.perf_counter() - start
            _keep(workdir, {"evaluation": number, "time": seconds} | reading(workdir))


if __name__ == "__main__":
    cli.end(main())
