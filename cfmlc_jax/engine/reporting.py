"""Where a run's metrics go: metrics.jsonl always, event files, trackers and writers of the user's if asked for."""

import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfmlc_jax.buckets import Address
from cfmlc_jax.engine import trackers, writers
from cfmlc_jax.engine.follower import Follower, Record, brief
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.engine.trackers import Label
from cfmlc_jax.engine.writers import JsonlWriter, MetricWriter, TensorBoardWriter
from cfmlc_jax.errors import InputError

TRACKERS: dict[str, Any] = {"wandb": trackers.Wandb, "mlflow": trackers.MLflow}
WRITERS = ("jsonl", "tensorboard", *TRACKERS)
# The package that a writer needs; its extra has the writer's name.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
NO_LABEL = Label()
# Folder of the trackers' records in a workdir.
FOLDER = "trackers"
_CUSTOM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_custom(name: str) -> bool:
    """Whether the name of a writer is of a class of the user's, module:Class."""
    return _CUSTOM.fullmatch(name) is not None


def require_place(names: Sequence[str], workdir: Path) -> None:
    """Raise if writers cannot be used in a workdir: objects in a bucket cannot grow as their files do.

    Raises:
        InputError: the workdir is in a bucket, and a writer needs a local one.
    """
    if not isinstance(workdir, Address):
        return
    if "tensorboard" in names:
        raise InputError(
            f"config.report.writers has 'tensorboard', whose event files grow, and the objects in {workdir} cannot; "
            "leave it out, or take a local --workdir"
        )
    if "wandb" in names and not os.environ.get("WANDB_DIR"):
        raise InputError(
            f"config.report.writers has 'wandb', whose own files cannot be in {workdir}; set WANDB_DIR to a local folder"
        )


class Reporting:
    """The metric writer of a run, from where the run resumes until its report is written; it passes all on to several.

    A context, which closes them and tells the trackers how the run ended. Only the first process writes.

    Args:
        names: of `WRITERS`, or module:Class for a class with the methods of `writers.MetricWriter`. metrics.jsonl is
            written in any case.
        label: how trackers name the run.
        hparams: the configuration as a flat dict.
        config: the configuration, for writers of the user's.
        print_line: prints a line for the user.
    """

    def __init__(
        self,
        names: Sequence[str] = ("jsonl",),
        *,
        label: Label = NO_LABEL,
        hparams: Mapping[str, Any] | None = None,
        config: Any = None,
        print_line: Callable[[str], None] = print,
    ):
        self._names, self._label, self._hparams, self._config = names, label, dict(hparams or {}), config
        self._print_line = print_line
        self._warnings: list[str] = []
        self._step = 0
        self._jsonl: JsonlWriter | None = None
        self._others: list[MetricWriter] = []
        self._followers: list[Follower] = []

    def __enter__(self) -> "Reporting":
        """Check that the packages and classes of all writers are there.

        Raises:
            InputError: one is not.
        """
        for name in self._names:
            if is_custom(name):
                _load(name)
            elif name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
                raise InputError(
                    f"config.report.writers has {name!r}, which needs the package {PACKAGES[name]}; "
                    f"pip install 'cfmlc_jax[{name}]'"
                )
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            outcome = trackers.FINISHED
        else:
            outcome = trackers.PREEMPTED if isinstance(error, Preempted) else trackers.FAILED
        for writer in self._others:
            writer.close()
        unsent = [follower.close(outcome) for follower in self._followers]
        for line in (*self.warnings(), *unsent):
            if line:
                self._print_line(line)

    def open(
        self,
        workdir: Path,
        *,
        last_step: int,
        validated: bool = True,
        logged: Mapping[str, Any] | None = None,
    ) -> None:
        """Open all writers for a run that starts or resumes; say so if a part of `metrics.jsonl` was lost.

        Args:
            workdir: of the run.
            last_step: step of the checkpoint that the run resumes from; 0: it starts.
            validated: see `JsonlWriter`.
            logged: likewise.

        Raises:
            InputError: `metrics.jsonl` is damaged; the class of a writer lacks methods; or a tracker cannot be used,
                and the workdir has no run in it that could be continued later.
        """
        self._step = last_step
        if jax.process_index() != 0:
            return
        self._jsonl = JsonlWriter(workdir / writers.METRICS, last_step, validated=validated, logged=logged)
        if self._jsonl.loss:
            self._print_line(self._jsonl.loss)
        if "tensorboard" in self._names:
            self._others.append(TensorBoardWriter(workdir / "tensorboard", last_step))
        for name in self._names:
            if is_custom(name):
                self._others.append(Guarded(_made(name, workdir, self._config), name, self._warnings.append))
        for name in TRACKERS:
            if name in self._names:
                self._followers.append(self._follower(name, workdir, starts=last_step == 0))
                self._followers[-1].catch_up(self._jsonl.kept)
        if last_step == 0:
            for writer in self._others:
                writer.write_hparams(self._hparams)

    def logged(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of the lines of `metrics.jsonl`; None: this process writes none."""
        return None if self._jsonl is None else self._jsonl.logged()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the named numbers of a step."""
        self._step = max(self._step, step)
        if self._jsonl is not None:
            self._jsonl.write_scalars(step, scalars)
        for writer in self._passed_on():
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write the named images of a step, each uint8 [n, h, w, 3]; not into the workdir, which has them."""
        for writer in self._passed_on():
            writer.write_images(step, images)

    def write_results(self, results: Mapping[str, float], report: Path) -> None:
        """Write the final metrics and the report; not into the workdir, which has them.

        Args:
            results: the metrics by name.
            report: folder of the report.
        """
        text = report / "results.md"
        for writer in self._others:
            writer.write_scalars(self._step, results)
            if text.exists():
                writer.write_texts(self._step, {"results": text.read_text(encoding="utf-8")})
        for follower in self._followers:
            follower.write_results(self._step, results, report)

    def flush(self) -> None:
        """Make sure that everything so far is on disk, or on its way."""
        if self._jsonl is not None:
            self._jsonl.flush()
        for writer in self._others:
            writer.flush()

    def warnings(self) -> list[str]:
        """Lines for the user, each only once: a tracker is down, or works again."""
        lines, self._warnings[:] = [*self._warnings], []
        return lines

    def _passed_on(self) -> list[MetricWriter | Follower]:
        """The writers beside metrics.jsonl."""
        return [*self._others, *self._followers]

    def _follower(self, name, workdir, *, starts):
        """The follower of a tracker. A run that starts is a new one in the tracker; one that resumes is continued."""
        record = Record(workdir / FOLDER / f"{name}.json")
        if starts:
            record.forget()
        connect = lambda: TRACKERS[name](self._label, workdir, self._hparams, record.id)  # noqa: E731
        try:
            tracker = connect()
        except InputError:
            raise
        except Exception as error:  # whatever the tracker's package raises
            if record.id is None:
                raise InputError(
                    f"config.report.writers has {name!r}, which cannot be used ({brief(error)}); "
                    f"{TRACKERS[name].remedy}"
                ) from error
            # A run that resumes by itself, after a preemption for example, does not end for that: it tries again.
            return Follower(name, record, connect, error, self._warnings.append)
        self._print_line(f"{name}: {tracker.place}")
        record.id = tracker.id
        record.write()
        return Follower(name, record, connect, tracker, self._warnings.append)


class Guarded:
    """A writer of the user's. If a call raises an exception, the user is told, and it gets no more calls.

    Args:
        writer: with the methods of `writers.MetricWriter`.
        name: of its class.
        warn: called with a line for the user.
    """

    def __init__(self, writer: MetricWriter, name: str, warn: Callable[[str], None]):
        missing = [method for method in writers.METHODS if not callable(getattr(writer, method, None))]
        if missing:
            raise InputError(
                f"config.report.writers has {name!r}, which lacks {', '.join(missing)}; a writer has the methods of "
                "cfmlc_jax.engine.writers.MetricWriter"
            )
        self._writer: MetricWriter | None = writer
        self._name, self._warn = name, warn

    def write_scalars(self, step, scalars):
        """Pass on."""
        self._call("write_scalars", step, scalars)

    def write_images(self, step, images):
        """Pass on."""
        self._call("write_images", step, images)

    def write_texts(self, step, texts):
        """Pass on."""
        self._call("write_texts", step, texts)

    def write_hparams(self, hparams):
        """Pass on."""
        self._call("write_hparams", hparams)

    def flush(self):
        """Pass on."""
        self._call("flush")

    def close(self):
        """Pass on."""
        self._call("close")

    def _call(self, method, *arguments):
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a user's writer raises, the run goes on
            self._writer = None
            self._warn(f"{self._name}.{method} {_raised(error)}; training goes on without this writer")


def _load(name):
    """The class of a name module:Class.

    Raises:
        InputError: there is no such module or class, or the module raises.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:  # the folder of the command, as with python -m
        sys.path.append("")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        reason, way_out = brief(error), "give module:Class of a module in this folder or on PYTHONPATH"
    except Exception as error:  # noqa: BLE001 - whatever a user's module raises
        reason, way_out = f"it {_raised(error)}", "mend the module"
    raise InputError(f"config.report.writers has {name!r}, which cannot be imported ({reason}); {way_out}")


def _made(name, workdir, config):
    """The writer of a name module:Class.

    Raises:
        InputError: as of `_load`, or its constructor raises.
    """
    try:
        return _load(name)(workdir, config)
    except InputError:
        raise
    except Exception as error:  # whatever a user's class raises
        raise InputError(
            f"config.report.writers has {name!r}, whose constructor, called with the workdir and the configuration, "
            f"{_raised(error)}; mend it, or leave it out"
        ) from error


def _raised(error):
    """What a user's code raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"raised {type(error).__name__} ({brief(error)}) at {place.filename}, line {place.lineno}"
