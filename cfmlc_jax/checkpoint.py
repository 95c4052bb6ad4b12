"""Checkpoints of a run, by Orbax: latest and best kept, whole or not there.

A checkpoint is a folder of three items: "model" (variables, their average, mean colour: all that
prediction needs), "training" (the rest of the state) and "meta" (configuration, class names, data,
progress). Behind its validation a file joins them: its rank, and the progress then. The position in
the data is the step: batches are a function of it, so there is no iterator to save, and a run may go
on with other workers, processes or devices.

Whoever reads a run's checkpoints leaves them as they are, since a training may be writing there; only the
training, in a `Checkpoints`, changes its folder.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cfmlc_jax import files
from cfmlc_jax.errors import InputError, RunError, WriteError

KEEP_LATEST = 2
# What reading a damaged checkpoint raises: missing files, cut JSON, chunks that don't decode.
_DAMAGED = (OSError, ValueError, KeyError, TypeError)
# What is amiss with the bytes of a file, and not with the machine that should read them.
_OF_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# The file of a rank; in checkpoints of older versions Orbax's.
_RANK, _OLDER_RANK = "rank.json", "metrics/metrics"
# Part of the name that Orbax gives a save while it is under way.
_UNFINISHED = ".orbax-checkpoint-tmp"
_NOBODY_WAITS = "Event loop is closed"
_LISTED = 3


class UnreadableError(InputError):
    """A checkpoint whose bytes are not those of a checkpoint, for a reason."""

    def __init__(self, path: Path, reason: object):
        self.reason = " ".join(str(reason).split())
        super().__init__(f"checkpoint {path} cannot be read: {self.reason[:300]}")


class Checkpoints:
    """The checkpoints in a folder that one training writes, saved and restored by step.

    Saving is synchronous: the next step donates the state's buffers. What a killed save has left is
    removed on opening.
    """

    def __init__(self, folder: Path):
        self._folder = Path(folder).absolute()
        if jax.process_index() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError(error.errno, error.strerror, str(self._folder)) from error
            _remove_unfinished(self._folder, "")
        self._ranks = _ranks(self._folder)
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def save(self, step: int, *, model, training, meta: dict) -> None:
        """Write one checkpoint, which is not ranked yet.

        Raises:
            WriteError: the disk is full, say; nothing of it is left, the others are as they were.
        """
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            training=ocp.args.StandardSave(training),
            meta=ocp.args.JsonSave(meta),
        )
        _save(self._checkpointer, self.path(step), items)
        self._ranks[step] = None
        self._drop_old()

    def rank(self, step: int, rank: float, progress: dict) -> None:
        """Say how good a saved checkpoint is, the largest being best.

        Args:
            step: of the checkpoint.
            rank: what decides.
            progress: entries that replace those of its meta from now on.

        Raises:
            WriteError: the disk is full, say; the checkpoint is as it was.
        """
        if jax.process_index() == 0:
            text = json.dumps(progress | {"rank": float(rank)})
            files.write_text(self.path(step) / _RANK, text + "\n")
        self._ranks[step] = rank
        self._drop_old()

    def restore_latest(
        self, *, model, training, check: Callable[[Path, dict], None], warn: Callable[[str], None]
    ) -> tuple[Any, Any, dict] | None:
        """The latest readable checkpoint's (model, training, meta); None if there never was one.

        The meta has "rank" and the progress then, if the checkpoint was ranked. A damaged one is moved to
        the folder "damaged" beside the checkpoints, with a warning, and the one before is taken.

        Args:
            model: abstract arrays with shardings, as `save` got them.
            training: likewise.
            check: called with the path and the meta before arrays are read; what it raises is raised.
            warn: told of every damaged checkpoint.

        Raises:
            InputError: the checkpoint is of another model.
            RunError: there are checkpoints and none is readable, or the machine cannot read them now.
        """
        steps = sorted(self._ranks, reverse=True)
        while self._ranks:
            step = max(self._ranks)
            path = self.path(step)
            try:
                meta = read_meta(path)
                check(path, meta)
                _require_shapes(path, model)
                restored = _read(
                    path,
                    model=ocp.args.StandardRestore(model),
                    training=ocp.args.StandardRestore(training),
                )
            except UnreadableError as error:
                kept = self._set_aside(step)
                reason = error.reason[:120]
                warn(
                    f"checkpoint {step} is damaged ({reason}); moved to {kept}, going on from the one before"
                )
                continue
            return restored["model"], restored["training"], meta | _progress(path)
        if steps:
            raise RunError(
                f"none of the checkpoints {steps} in {self._folder} is readable; start a new workdir"
            )
        aside = [child.name for child in _numbered(self._aside)]
        if aside:
            raise RunError(
                f"{self._folder} has no checkpoint left, and those in {self._aside} ({', '.join(aside)}) could not "
                "be read; put a good copy of one back, or start a new workdir"
            )
        return None

    def best_step(self) -> int | None:
        """Step of the best ranked checkpoint, else the latest; None without any."""
        return _best(self._ranks)

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None without any."""
        return max(self._ranks, default=None)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self._folder / str(step)

    def close(self) -> None:
        """Release Orbax's threads."""
        self._checkpointer.close()

    @property
    def _aside(self):
        return self._folder.parent / "damaged"

    def _drop_old(self):
        """Remove all but the latest and the best."""
        kept = {*sorted(self._ranks)[-KEEP_LATEST:], _best(self._ranks)}
        for step in self._ranks.keys() - kept:
            del self._ranks[step]
            if jax.process_index() == 0:
                # In one stroke for readers; a crash leaves what opening removes.
                doomed = self.path(step).rename(self._folder / f"{step}{_UNFINISHED}-old")
                shutil.rmtree(doomed)

    def _set_aside(self, step):
        target = self._aside / str(step)
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            suffix = 1
            while target.exists():
                target = target.with_name(f"{step}.{suffix}")
                suffix += 1
            self.path(step).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")
        del self._ranks[step]
        return target


def find(path: Path) -> Path:
    """The checkpoint that a path means: itself, a run's best, or the best of a folder of checkpoints.

    Raises:
        InputError: there is none.
    """
    path = files.place(path, "checkpoint").absolute()
    if "\\" in str(path):
        raise InputError(f"{path} has a backslash in it, which Orbax takes for a slash; rename the folder")
    if (path / "model").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best = _best(_ranks(folder))
    if best is not None:
        return folder / str(best)
    if path.is_file():
        raise InputError(
            f"{path} is a file, not a checkpoint; one of PyTorch is converted by python -m cfmlc_jax.torch_weights {path} OUT"
        )
    raise InputError(
        f"{path} is not a checkpoint, nor a run with checkpoints; give a workdir or a step's folder"
    )


def write(path: Path, *, model, meta: dict) -> None:
    """Make a checkpoint of its own that `find`, `read_model` and `read_meta` read; whole or not there.

    Args:
        path: a new folder.
        model: arrays, as `Checkpoints.save` gets them.
        meta: "config", "class_names" (None: not known) and "num_classes".

    Raises:
        InputError: it is there already, or cannot be written.
    """
    path = files.place(path, "checkpoint").absolute()
    files.require_savable(path, "checkpoint")
    if path.exists():
        raise InputError(f"{path} is there already; remove it, or give another place")
    items = ocp.args.Composite(model=ocp.args.StandardSave(model), meta=ocp.args.JsonSave(meta))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            _save(checkpointer, path, items)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); give another place") from error


def read_meta(path: Path) -> dict:
    """Configuration, class names (None: not known) and progress of a checkpoint.

    Raises:
        InputError: it cannot be read.
    """
    meta = _read(path, meta=ocp.args.JsonRestore())["meta"]
    if not isinstance(meta, dict) or "class_names" not in meta:
        raise _unreadable(path, "its meta names no classes")
    return meta


def read_model(path: Path, abstract) -> Any:
    """The "model" item of a checkpoint in the shapes and shardings of `abstract`.

    Raises:
        InputError: it cannot be read, or is another model's.
    """
    return _read(path, model=ocp.args.StandardRestore(abstract))["model"]


def num_classes(meta: dict) -> int:
    """Number of classes, by what `read_meta` gave."""
    return meta["num_classes"] if meta["class_names"] is None else len(meta["class_names"])


def require_head(path: Path, meta: dict) -> None:
    """Pass unless a checkpoint is a backbone by itself, which scores nothing.

    Raises:
        InputError: it is.
    """
    if num_classes(meta) == 0:
        raise InputError(
            f"checkpoint {path} is a backbone without a head, which scores nothing; train one on it: "
            f"--config.init_from={path}"
        )


def model_shapes(path: Path) -> dict:
    """Shapes and types of the "model" item: `jax.ShapeDtypeStruct`s in nested dicts.

    Raises:
        InputError: it cannot be read.
    """
    with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.metadata(Path(path) / "model").item_metadata
    if found is None:
        raise _unreadable(path, "its model has no index")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found.tree)


def read_part(path: Path, abstract) -> Any:
    """Some arrays of the "model" item.

    Args:
        path: a checkpoint.
        abstract: what to read, nested as in the item: `jax.ShapeDtypeStruct`s; those with a
            sharding come as arrays with it, the others as numpy arrays.

    Raises:
        InputError: it cannot be read, or lacks an array of that shape.
    """

    def how(leaf):
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)

    part = ocp.args.PyTreeRestore(
        item=abstract, restore_args=jax.tree.map(how, abstract), partial_restore=True
    )
    with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(Path(path) / "model", args=part)
    for (place, wanted), leaf in zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(found)):
        # What is not there comes back from Orbax as it was asked for.
        if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.shape != wanted.shape:
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise InputError(f"checkpoint {path} has no {name} of shape {list(wanted.shape)}")
    return found


def _save(checkpointer, path, items):
    """Write a checkpoint, whole or not there."""
    others = set(threading.enumerate())
    with _quietly():
        try:
            checkpointer.save(path, args=items)
        except (OSError, ValueError) as error:
            number = _error_number(error)
            if number is None:
                raise
            _await_orbax(others)
            for _ in range(5):  # TensorStore's last writes make their folders anew
                _remove_unfinished(path.parent, path.name)
                time.sleep(0.1)
            raise WriteError(number, os.strerror(number), str(path)) from error


def _remove_unfinished(folder, name):
    """Remove what saves of this name have left in a folder; of every name, if it is empty."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        saved, mark, _ = path.name.partition(_UNFINISHED)
        if mark and name in ("", saved):
            shutil.rmtree(path, ignore_errors=True)


def _await_orbax(others):
    """Wait for the threads that a failed save has left: they go on writing. `others` were there before."""
    for thread in set(threading.enumerate()) - others:
        if type(thread).__module__.startswith("orbax."):
            threading.Thread.join(thread)  # their own raises what ended them


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Inside, Orbax and TensorStore print nothing of a failure, which is raised as well.

    Orbax logs those of its threads; reads and writes that are under way then print, sooner or later and in threads
    of TensorStore's own, that nobody waits for them any more: so after a failure they stay silent.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hooks = [logger.level for logger in loggers], (sys.excepthook, sys.unraisablehook)

    def of_threads(kind, error, trace):
        if str(error) != _NOBODY_WAITS:
            hooks[0](kind, error, trace)

    def of_callbacks(what):
        if str(what.exc_value) != _NOBODY_WAITS:
            hooks[1](what)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.excepthook, sys.unraisablehook = of_threads, of_callbacks
    yield
    sys.excepthook, sys.unraisablehook = hooks
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)


def _read(path, **items):
    with _reading(path), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _reading(path) -> Iterator[None]:
    """What Orbax raises inside, in one line."""
    try:
        with _quietly():
            yield
    except _DAMAGED as error:
        number = _error_number(error)
        if number is not None and number not in _OF_FILES:
            raise RunError(
                f"checkpoint {path} cannot be read ({os.strerror(number)}); mend that and give the same command again"
            ) from error
        raise _unreadable(path, error) from error


def _unreadable(path, reason):
    if not path.exists():
        return InputError(
            f"checkpoint {path} is gone; a training that goes on keeps the latest and the best alone"
        )
    return UnreadableError(path, reason)


def _error_number(error) -> int | None:
    """The operating system's number for what went wrong, if it is to blame; TensorStore puts it in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found:
        return int(found[1])
    return errno.ENOMEM if "RESOURCE_EXHAUSTED" in str(error) else None


def _require_shapes(path, abstract):
    """Raise unless the "model" item has the abstract arrays' names and shapes."""
    stored, wanted = (_named_shapes(tree) for tree in (model_shapes(path), abstract))
    differing = [
        f"{name} {list(stored[name]) if name in stored else 'missing'}"
        f" instead of {list(wanted[name]) if name in wanted else 'none'}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if differing:
        more = f" and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
        raise InputError(
            f"checkpoint {path} is of another model ({', '.join(differing[:_LISTED])}{more}); take another --workdir"
        )


def _named_shapes(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(place, simple=True, separator="/"): leaf.shape for place, leaf in leaves}


def _numbered(folder):
    """The checkpoints in a folder, those set aside twice ("40.1") too."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0].isdecimal())


def _ranks(folder) -> dict[int, float | None]:
    """Step -> rank of the whole checkpoints in a folder; None for one that is not ranked."""
    steps = [int(child.name) for child in _numbered(folder) if child.name.isdecimal()]
    return {step: _progress(folder / str(step)).get("rank") for step in steps}


def _progress(path) -> dict:
    """What ranking a checkpoint wrote; empty before that, and for a damaged file, as if it was not ranked."""
    file = path / _RANK
    try:
        text = (file if file.exists() else path / _OLDER_RANK).read_text(encoding="utf-8")
        progress = json.loads(text)
    except (OSError, ValueError):
        return {}
    return progress if isinstance(progress, dict) and isinstance(progress.get("rank"), int | float) else {}


def _best(ranks) -> int | None:
    """The step of the highest rank, of equal ones the latest; without ranks the latest of all."""
    ranked = {step: rank for step, rank in ranks.items() if rank is not None and not math.isnan(rank)}
    return max(ranked or ranks, key=lambda step: (ranked.get(step, 0.0), step), default=None)
