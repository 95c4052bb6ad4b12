"""Checkpoints of a run, written by Orbax atomically; the latest and the best are kept.

A checkpoint is a folder of three items: "model" (variables, their average, mean colour: all that
prediction needs), "training" (the rest of the state) and "meta" (configuration, class names, data,
progress). A file has the digests of all others (`digests`): what has changed since then is not read. After validation
a file is added with the checkpoint's rank and the progress at that time. The
position in the data is the step: batches are a function of it, so no iterator is saved, and a run may
resume with another number of workers, processes or devices.

Readers never change a run's checkpoints, because a training may be writing there. Only the training
changes the folder, through `Checkpoints`. They also take the folders of `weights_folder`, which hold no training.

Every checkpoint names the version that wrote it, and the number of its format.

In a bucket a checkpoint has the same files. Orbax writes and reads them on the local disk, from and to which they are
copied: it knows no s3://, and on gs:// other processes than ours. The file `_MARK` is put last and removed first; a
checkpoint without it does not count. Of several processes the first one gathers and writes all arrays.
"""

import contextlib
import errno
import functools
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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

import cfmlc_jax
from cfmlc_jax import buckets, digests, files, processes, weights_folder
from cfmlc_jax.buckets import Address
from cfmlc_jax.errors import BucketError, InputError, RunError, WriteError

KEEP_LATEST = 2
# Raised when older versions would read a checkpoint wrongly or not at all; they then ask to be upgraded.
FORMAT = 1
# What reading a damaged checkpoint raises: missing files, truncated JSON, chunks that don't decode.
_DAMAGED = (OSError, ValueError, KeyError, TypeError)
# Errors that say that the files are damaged, not that the machine cannot read them now.
_OF_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# The file with the rank, and the file that Orbax wrote for it in older versions.
_RANK, _OLDER_RANK = "rank.json", "metrics/metrics"
# A file that every checkpoint has.
_MARK = "_CHECKPOINT_METADATA"
# Part of the name of an Orbax save that is not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"
# A failed save that writes nothing for so many seconds writes nothing more.
_STILL = 5.0
_NOBODY_WAITS = "Event loop is closed"
# With these words Orbax wraps what TensorStore raises about a part of an array into a plain Exception.
_OF_A_PART = "Encountered error while reading array index"
_LISTED = 3


class UnreadableError(InputError):
    """A checkpoint is damaged; `reason` says how, on one line."""

    def __init__(self, path: Path, reason: object):
        self.reason = " ".join(str(reason).split())
        super().__init__(f"checkpoint {path} cannot be read: {self.reason[:300]}")


class Checkpoints:
    """The checkpoints that one training writes to a folder, saved and restored by step.

    A save copies the arrays to the host, then writes in the background, at most one checkpoint at a time; the
    other methods wait for it first, except `last_complete`. Opening the folder removes the remains of a killed save.
    """

    def __init__(self, folder: Path):
        self._folder = files.path_of(folder).absolute()
        if jax.process_index() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError(error.errno, error.strerror, str(self._folder)) from error
            _remove_unfinished(self._folder, "")
            if not isinstance(self._folder, Address):
                files.remove_temporary(self._folder)
        self._ranks = dict(processes.of_first(lambda: [*_ranks(self._folder).items()]))
        self._in_bucket = isinstance(self._folder, Address)
        self._checkpointer = _async_checkpointer(alone=self._in_bucket)
        self._finisher = ThreadPoolExecutor(1)  # of what follows when Orbax has written a checkpoint
        self._finishing: Future | None = None
        # The step that is being written, and the context that reports why it cannot be written.
        self._writing: tuple[int, contextlib.ExitStack] | None = None

    def save(self, step: int, *, model, training, meta: dict) -> None:
        """Begin to write one checkpoint, not ranked yet. The arrays may be changed or donated after the call.

        Raises:
            WriteError: this checkpoint or the one before cannot be written (`wait`). To save again, open the folder anew:
                Orbax may report the failure twice.
        """
        self.wait()
        if self._in_bucket and jax.process_count() > 1:
            model, training = multihost_utils.process_allgather((model, training), tiled=True)
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            training=ocp.args.StandardSave(training),
            meta=ocp.args.JsonSave(signed(meta)),
        )
        with contextlib.ExitStack() as stack:
            if not self._in_bucket:
                stack.enter_context(_explained(self.path(step)))
                self._checkpointer.save(self.path(step), args=items)
                if jax.process_index() == 0:
                    self._finishing = self._finisher.submit(self._finish, self.path(step))
            elif jax.process_index() == 0:
                copy = stack.enter_context(buckets.local_folder()) / str(step)
                stack.enter_context(_explained(copy, self.path(step)))
                self._checkpointer.save(copy, args=items)
                self._finishing = self._finisher.submit(self._put, copy, self.path(step))
            self._writing = step, stack.pop_all()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            WriteError: the disk is full, for example; no part of it is left, the others are unchanged. Or it is written, and
                an old one cannot be removed.
        """
        if self._writing is None:
            return
        (step, stack), self._writing = self._writing, None
        failure: WriteError | None = None
        try:
            with stack:
                if self._finishing is not None:
                    self._finishing.result()
                elif not self._in_bucket:
                    self._checkpointer.wait_until_finished()
        except WriteError as error:
            failure = error
        if self._in_bucket:  # where the first process alone writes
            reason = processes.of_first(lambda: failure and [failure.errno, failure.strerror])
            if reason and failure is None:
                failure = WriteError(*reason, str(self.path(step)))
        if failure is not None:
            raise failure
        self._ranks[step] = None
        self._drop_old()

    def _finish(self, path):
        """Put a checkpoint on the disk and write its digests, when Orbax has written it."""
        self._checkpointer.wait_until_finished()
        _sync(path)
        _sign(path)

    def _put(self, copy, address):
        """Put a checkpoint into the bucket, when Orbax has written it to the local disk."""
        self._checkpointer.wait_until_finished()
        _sign(copy)
        address.rmtree(missing_ok=True)  # what a save of this step that was killed has left
        address.upload(copy, last=_MARK)

    def rank(self, step: int, rank: float, progress: dict) -> None:
        """Record how good a saved checkpoint is; the largest rank is the best.

        Args:
            step: the checkpoint's.
            rank: the value to compare.
            progress: entries that replace those of its meta from now on.

        Raises:
            WriteError: the disk is full, for example; the checkpoint is unchanged, or an old one cannot be removed.
        """
        self.wait()
        if jax.process_index() == 0:
            text = json.dumps(progress | {"rank": float(rank)})
            files.write_text(self.path(step) / _RANK, text + "\n")
        self._ranks[step] = rank
        self._drop_old()

    def restore_latest(
        self, *, model, training, check: Callable[[Path, dict], None], warn: Callable[[str], None]
    ) -> tuple[Any, Any, dict] | None:
        """The latest readable checkpoint's (model, training, meta); None if none was ever saved.

        If the checkpoint was ranked, the meta includes "rank" and the progress at that time. A damaged
        checkpoint is moved to the folder "damaged" beside the checkpoints, with a warning, and the one before
        it is restored. If the one that is restored has no digests, they are written.

        Args:
            model: abstract arrays with shardings, of the same tree that `save` received.
            training: likewise.
            check: called with the path and the meta before arrays are read; what it raises is raised.
            warn: called with a line about every damaged checkpoint.

        Raises:
            InputError: the checkpoint belongs to another model.
            RunError: there are checkpoints but none is readable, or the machine cannot read them now.
            WriteError: a damaged checkpoint cannot be moved.
        """
        self.wait()
        steps = sorted(self._ranks, reverse=True)
        while self._ranks:
            step = max(self._ranks)
            path = self.path(step)
            reason = ""
            try:
                meta = read_meta(path)
                check(path, meta)
                with _copied(path, "model", "training"):
                    _require_shapes(path, model, "choose another --workdir")
                    restored = _read(
                        path,
                        model=ocp.args.StandardRestore(model),
                        training=ocp.args.StandardRestore(training),
                    )
            except UnreadableError as error:
                reason = error.reason
            # The damage may be in a part that only one process reads: all must resume from the same checkpoint.
            reason = next(filter(None, processes.gather(reason)), "")
            if not reason:
                if jax.process_index() == 0 and not self._in_bucket and not (path / digests.FILE).exists():
                    _sign(path)  # the process that saved it was killed before, or the disk was full
                progress = processes.of_first(functools.partial(_progress, path))
                return restored["model"], restored["training"], meta | progress
            kept = self._set_aside(step)
            warn(
                f"checkpoint {step} is damaged ({reason[:120]}); moved to {kept}, resuming from the one before"
            )
        if steps:
            raise RunError(
                f"none of the checkpoints {steps} in {self._folder} is readable; start a new workdir"
            )
        aside = [child.name for child in _numbered(self._aside)]
        if aside:
            raise RunError(
                f"{self._folder} has no checkpoint left, and those in {self._aside} ({', '.join(aside)}) could not "
                "be read; restore one from a backup, or start a new workdir"
            )
        return None

    def best_step(self) -> int | None:
        """Step of the best ranked checkpoint, or of the latest if none is ranked; None without checkpoints."""
        self.wait()
        return _best(self._ranks)

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None without checkpoints."""
        self.wait()
        return max(self._ranks, default=None)

    def last_complete(self) -> int | None:
        """Step of the latest checkpoint that is known to be complete; None: there is none yet."""
        return max(self._ranks, default=None)

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self._folder / str(step)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and release Orbax's threads.

        A checkpoint that cannot be written is not reported: call `wait` before, unless the run fails anyway. In
        a bucket, where the first process writes, the others do not wait for it: it may be waiting for one that failed.
        """
        if self._in_bucket and jax.process_index() != 0:
            self._writing = None
        with contextlib.suppress(WriteError, BucketError):
            self.wait()
        if self._checkpointer is not None:
            with contextlib.suppress(OSError):  # Orbax raises once more what ended a save
                self._checkpointer.close()
        self._finisher.shutdown()

    @property
    def _aside(self):
        return self._folder.parent / "damaged"

    def _drop_old(self):
        """Remove all but the latest and the best."""
        kept = {*sorted(self._ranks)[-KEEP_LATEST:], _best(self._ranks)}
        for step in self._ranks.keys() - kept:
            if jax.process_index() == 0:
                self._drop(self.path(step))
            del self._ranks[step]

    def _drop(self, path):
        if isinstance(path, Address):
            _remove(path)
            return
        try:
            # Renamed first, so that readers never see half of it; after a crash opening removes the rest.
            shutil.rmtree(path.rename(path.with_name(f"{path.name}{_UNFINISHED}-old")))
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(path)) from error

    def _set_aside(self, step):
        """Move a damaged checkpoint; returns where to."""
        target = processes.of_first(functools.partial(self._move_aside, self.path(step)))
        del self._ranks[step]
        return target

    def _move_aside(self, path):
        target, suffix = self._aside / path.name, 1
        try:
            target.parent.mkdir(exist_ok=True)
            while target.exists():
                target = target.with_name(f"{path.name}.{suffix}")
                suffix += 1
            if isinstance(path, Address):
                path.copy_to(target, last=_MARK)
                _remove(path)
            else:
                path.rename(target)
        except BucketError:
            raise
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(target)) from error
        return str(target)


def _async_checkpointer(*, alone):
    """Orbax's checkpointer of all processes, or of the first one alone: None on the others."""
    if not alone or jax.process_count() == 1:
        return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    if jax.process_index() != 0:
        return None
    options = _of_one(0)
    return ocp.AsyncCheckpointer(_handler(options), multiprocessing_options=options)


def _of_one(process):
    """Options of Orbax by which a process waits for no other."""
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process_{process}"
    )


def _handler(options):
    """Orbax's handler of a checkpoint's items."""
    return ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=options),
        model=ocp.StandardCheckpointHandler(multiprocessing_options=options),
        training=ocp.StandardCheckpointHandler(multiprocessing_options=options),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=options),
    )


def _remove(address):
    """Remove a checkpoint from a bucket; from its first moment on readers do not see it."""
    (address / _MARK).unlink(missing_ok=True)
    address.rmtree(missing_ok=True)


_COPIES: dict[Address, Path] = {}


@contextlib.contextmanager
def _copied(path, *items: str) -> Iterator[Path]:
    """The checkpoint on the local disk: itself, or while the block lasts a copy of some items of one in a bucket."""
    if not isinstance(path, Address):
        yield path
        return
    with contextlib.ExitStack() as stack:
        if path not in _COPIES:
            _COPIES[path] = stack.enter_context(buckets.local_folder()) / path.name
            stack.callback(_COPIES.pop, path)
        copy = _COPIES[path]
        with _reading(path):
            wanted = [name for name in path.files() if "/" not in name or name.partition("/")[0] in items]
            path.download(copy, [name for name in wanted if not (copy / name).exists()])
        yield copy


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder: what a killed save has left does not count."""
    return [
        int(child.name)
        for child in _numbered(folder)
        if child.name.isdecimal() and (not isinstance(child, Address) or (child / _MARK).exists())
    ]


def find(path: Path) -> Path:
    """The checkpoint at a path: the path itself, or the best one of a run or of a folder of checkpoints.

    A folder of `weights_folder` is one too, and its file of arrays stands for it.

    Raises:
        InputError: the path leads to no checkpoint.
        RunError: the machine cannot read now which one is the best.
    """
    path = files.place(path, "checkpoint", bucket=True).absolute()
    if "\\" in str(path):
        raise InputError(f"{path} has a backslash in it, which Orbax reads as a slash; rename the folder")
    if (path / "model").is_dir() or weights_folder.is_one(path):
        return path
    if path.name == weights_folder.WEIGHTS and (path.parent / weights_folder.CONFIG).is_file():
        return path.parent
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best = _best(_ranks(folder))
    if best is not None:
        return folder / str(best)
    if path.is_file():
        raise InputError(
            f"{path} is a file, not a checkpoint; convert a PyTorch file by python -m cfmlc_jax.torch_weights {path} OUT"
        )
    raise InputError(
        f"{path} is not a checkpoint, nor a run with checkpoints; give a workdir or the folder of one step"
    )


def find_together(path: Path) -> Path:
    """The checkpoint that the first process finds (`find`), in each process of the run.

    Each by itself may find another one while a training writes there.

    Raises:
        InputError, RunError: in the first process, as `find`.
    """
    return files.path_of(processes.of_first(lambda: str(find(path))))


def write(path: Path, *, model, meta: dict) -> None:
    """Write a single checkpoint outside a run, atomically; `find`, `read_model` and `read_meta` read it.

    Args:
        path: a new folder.
        model: arrays, as for `Checkpoints.save`.
        meta: "config", "class_names" (None: not known) and "num_classes".

    Raises:
        InputError: the folder exists already, or cannot be written.
    """
    path = files.place(path, "checkpoint", bucket=True).absolute()
    files.require_savable(path, "checkpoint")
    if path.exists():
        raise InputError(f"{path} exists already; remove it, or choose another path")
    items = ocp.args.Composite(model=ocp.args.StandardSave(model), meta=ocp.args.JsonSave(signed(meta)))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            if isinstance(path, Address):
                with buckets.local_folder() as folder, _explained(folder / path.name, path):
                    checkpointer.save(folder / path.name, args=items)
                    digests.write(folder / path.name)
                    path.upload(folder / path.name, last=_MARK)
                return
            with _explained(path):
                checkpointer.save(path, args=items)
                _sync(path)
                digests.write(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); choose another path") from error


def read_meta(path: Path) -> dict:
    """Configuration, class names (None: not known) and progress of a checkpoint, as a dict.

    Raises:
        InputError: the checkpoint cannot be read, or a newer version wrote it in a way that this one cannot read.
    """
    if weights_folder.is_one(path):
        meta = weights_folder.read_meta(path)
    else:
        meta = _read(path, meta=ocp.args.JsonRestore())["meta"]
    if not isinstance(meta, dict):
        raise _unreadable(path, "its meta has no class names")
    number = meta.get("format", FORMAT)
    if isinstance(number, int) and number > FORMAT:
        raise InputError(_upgrade(path, meta))
    names = meta.get("class_names", "")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise _unreadable(path, "its meta has no class names")
    if not isinstance(meta.get("config", {}), dict):
        raise _unreadable(path, "its configuration has no fields")
    return meta


def signed(meta: dict) -> dict:
    """The meta of a checkpoint with the version and the format of this package."""
    return meta | {"version": cfmlc_jax.__version__, "format": FORMAT}


@contextlib.contextmanager
def understanding(path: Path, meta: dict) -> Iterator[None]:
    """A context in which the meta of a checkpoint is used. An `InputError` about a newer version's asks for an upgrade."""
    try:
        yield
    except InputError as error:
        if _numbers(meta.get("version", "")) <= _numbers(cfmlc_jax.__version__):
            raise
        raise InputError(f"{_upgrade(path, meta)} ({error})") from error


def _upgrade(path, meta):
    return (
        f"checkpoint {path} was written by version {meta.get('version')} of cfmlc_jax, this is "
        f"{cfmlc_jax.__version__}, which cannot read it; upgrade: pip install --upgrade cfmlc_jax"
    )


def _numbers(version):
    return tuple(int(number) for number in re.findall(r"\d{1,9}", str(version)))


def read_model(path: Path, abstract) -> Any:
    """The "model" item of a checkpoint in the shapes and shardings of `abstract`.

    Raises:
        InputError: the checkpoint cannot be read, or belongs to another model.
    """
    with _copied(path, "model") as copy:
        _require_shapes(path, abstract, "its configuration or its class names were changed: restore it")
        if weights_folder.is_one(copy):
            return weights_folder.read_part(copy, abstract)
        return _read(path, model=ocp.args.StandardRestore(abstract))["model"]


def num_classes(meta: dict) -> int:
    """Number of classes according to the meta of a checkpoint (`read_meta`)."""
    return meta["num_classes"] if meta["class_names"] is None else len(meta["class_names"])


def require_head(path: Path, meta: dict) -> None:
    """Raise if a checkpoint is a backbone without a head, which cannot score images.

    Raises:
        InputError: there is no head.
    """
    if num_classes(meta) == 0:
        raise InputError(
            f"checkpoint {path} is a backbone without a head, which cannot score images; train a head on it: "
            f"--config.init_from={path}"
        )


def model_shapes(path: Path) -> dict:
    """Shapes and types of the "model" item: `jax.ShapeDtypeStruct`s in nested dicts.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    with _copied(path, "model") as copy:
        if weights_folder.is_one(copy):
            return weights_folder.shapes(copy)
        with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            metadata = checkpointer.metadata(copy / "model").item_metadata
    if metadata is None:
        raise _unreadable(path, "its model has no index")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.tree)


def read_part(path: Path, abstract) -> Any:
    """Some arrays of the "model" item, nested as in `abstract`.

    Args:
        path: a checkpoint.
        abstract: what to read, nested as in the item: `jax.ShapeDtypeStruct`s. Those with a
            sharding are read as JAX arrays with it, the others as numpy arrays.

    Raises:
        InputError: the checkpoint cannot be read, or lacks an array of that shape.
    """

    def restore_args(leaf):
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)

    part = ocp.args.PyTreeRestore(
        item=abstract, restore_args=jax.tree.map(restore_args, abstract), partial_restore=True
    )
    with _copied(path, "model") as copy:
        if weights_folder.is_one(copy):
            return weights_folder.read_part(copy, abstract)
        _require_intact(path, copy, ("model",))
        with _reading(path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(copy / "model", args=part)
    for (place, wanted), leaf in zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(arrays)):
        # For an array that is missing Orbax returns its abstract leaf unchanged.
        if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.shape != wanted.shape:
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise InputError(f"checkpoint {path} has no {name} of shape {list(wanted.shape)}")
    return arrays


@contextlib.contextmanager
def _explained(path, address=None) -> Iterator[None]:
    """A context in which a checkpoint is written: if it cannot be, nothing of it is left, and a `WriteError` says why.

    `address`: where the checkpoint is copied to, in a bucket; what is left of it there does not count.
    """
    others = set(threading.enumerate())
    with _quietly():
        try:
            yield
        except BucketError as error:
            raise WriteError(error.errno, error.strerror, error.filename) from error
        except (OSError, ValueError) as error:
            number, reason = _error_number(error), None
            if isinstance(error, TimeoutError):  # Orbax waits by the clock of the day
                number, reason = errno.ETIMEDOUT, "not in time: the disk is slow, or the clock has jumped"
            if number is None:
                raise
            _await_orbax(others, path)
            for _ in range(5):  # TensorStore's last writes create their folders again
                _remove_unfinished(path.parent, path.name)
                time.sleep(0.1)
            place = path if address is None or number in (errno.ENOSPC, errno.EDQUOT) else address
            raise WriteError(number, reason or os.strerror(number), str(place)) from error


def _sync(path):
    """Put a checkpoint on the disk. One that cannot be put there is renamed to an unfinished save, which is removed.

    TensorStore syncs the arrays; Orbax syncs neither its other files nor the names of its folders.
    """
    try:
        files.sync(path)
    except OSError:
        path.rename(path.with_name(f"{path.name}{_UNFINISHED}-unsafe"))
        raise


def _sign(path):
    """Write the digests of a checkpoint."""
    # On a disk that is full now it is as good without them, and the run's next file says so.
    with contextlib.suppress(OSError):
        digests.write(path)


def _remove_unfinished(folder, name):
    """Remove the remains of unfinished saves of this name in a folder; an empty name means all saves."""
    if not folder.is_dir():
        return
    if isinstance(folder, Address):
        for path in _numbered(folder):
            if name in ("", path.name) and not (path / _MARK).exists():
                path.rmtree(missing_ok=True)
        return
    for path in folder.iterdir():
        saved, mark, _ = path.name.partition(_UNFINISHED)
        if mark and name in ("", saved):
            shutil.rmtree(path, ignore_errors=True)


def _await_orbax(others, path):
    """Wait until the threads that a failed save of this path left running end, or write nothing more.

    If a folder cannot be created, those that would write into it wait for it, in vain and for five minutes.

    Args:
        others: the threads that were there before.
        path: of the checkpoint.
    """
    threads = [
        thread
        for thread in set(threading.enumerate()) - others
        if type(thread).__module__.startswith("orbax.")
    ]
    written, since = _written(path), time.monotonic()
    while any(thread.is_alive() for thread in threads) and time.monotonic() < since + _STILL:
        time.sleep(0.1)
        if written != (written := _written(path)):
            since = time.monotonic()


def _written(path) -> list[tuple[str, int]]:
    """The files of an unfinished save of a path, and their sizes."""
    sizes = []
    for remains in path.parent.glob(f"{path.name}{_UNFINISHED}*"):
        for folder, _, names in os.walk(remains):
            for file in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    sizes.append((str(file), file.stat().st_size))
    return sizes


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Orbax and TensorStore from printing failures inside the block, because they are raised as well.

    Orbax logs failures of its threads. Reads and writes still in progress then print, at some later time and
    from TensorStore's threads, that they failed, too, or that the event loop is closed. After a failure the block
    therefore leaves them silent.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels, hooks = [logger.level for logger in loggers], (sys.excepthook, sys.unraisablehook)

    def of_threads(kind, error, trace):
        if not str(error).startswith((_NOBODY_WAITS, _OF_A_PART)):
            hooks[0](kind, error, trace)

    def of_callbacks(what):
        if not str(what.exc_value).startswith((_NOBODY_WAITS, _OF_A_PART)):
            hooks[1](what)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.excepthook, sys.unraisablehook = of_threads, of_callbacks
    yield
    sys.excepthook, sys.unraisablehook = hooks
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)


def _read(path, **items):
    with _copied(path, *items) as copy:
        _require_intact(path, copy, items)
        with _reading(path), _reader() as checkpointer:
            return checkpointer.restore(copy, args=ocp.args.Composite(**items))


def _require_intact(path, copy, items):
    """Raise if a file of some items is not as it was written. On a disk that all processes share, the first one looks."""
    if jax.process_index() == 0 or isinstance(path, Address):
        with _reading(path):
            difference = digests.difference(copy, items)
        if difference:
            raise UnreadableError(path, difference)


def _reader():
    """Orbax's checkpointer of this process: if it cannot read, no other waits for it."""
    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    options = _of_one(jax.process_index())
    return ocp.Checkpointer(_handler(options), multiprocessing_options=options)


@contextlib.contextmanager
def _reading(path) -> Iterator[None]:
    """Turn what Orbax raises inside the block into an error of one line."""
    try:
        with _quietly():
            yield
    except BucketError:
        raise
    except Exception as raised:
        error = raised.__cause__ if str(raised).startswith(_OF_A_PART) else raised
        if not isinstance(error, _DAMAGED):
            raise
        number = _error_number(error)
        if number is not None and number not in _OF_FILES:
            raise _unreadable_now(path, number) from error
        raise _unreadable(path, error) from error


def _unreadable_now(path, number):
    reason = os.strerror(number)
    return RunError(f"checkpoint {path} cannot be read ({reason}); fix that and run the same command again")


def _unreadable(path, reason):
    if not (path / _MARK if isinstance(path, Address) else path).exists():
        return InputError(f"checkpoint {path} is gone; a running training keeps only the latest and the best")
    return UnreadableError(path, reason)


def _error_number(error) -> int | None:
    """The errno of an error, or None if it is not the operating system's; TensorStore puts it in its message."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"os_error_code='(\d+)'", str(error))
    if match:
        return int(match[1])
    return errno.ENOMEM if "RESOURCE_EXHAUSTED" in str(error) else None


def _require_shapes(path, abstract, way_out):
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
            f"checkpoint {path} belongs to another model ({', '.join(differing[:_LISTED])}{more}); {way_out}"
        )


def _named_shapes(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(place, simple=True, separator="/"): leaf.shape for place, leaf in leaves}


def _numbered(folder):
    """The checkpoints in a folder, sorted by name, including steps that were set aside twice ("40.1")."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0].isdecimal())


def _ranks(folder) -> dict[int, float | None]:
    """Step -> rank of the complete checkpoints in a folder; None for one that is not ranked."""
    return {step: _progress(folder / str(step)).get("rank") for step in complete_steps(folder)}


def _progress(path) -> dict:
    """What `Checkpoints.rank` wrote; empty for a checkpoint that is not ranked or whose file is damaged.

    Raises:
        BucketError, RunError: the file cannot be read now: without its rank the best checkpoint would be removed.
    """
    try:
        try:
            text = (path / _RANK).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = (path / _OLDER_RANK).read_text(encoding="utf-8")
        progress = json.loads(text)
    except BucketError:
        raise
    except OSError as error:
        if error.errno not in _OF_FILES:
            raise _unreadable_now(path, error.errno) from error
        return {}
    except (ValueError, RecursionError):
        return {}
    return progress if isinstance(progress, dict) and isinstance(progress.get("rank"), int | float) else {}


def _best(ranks) -> int | None:
    """The step of the highest rank, the latest of equal ones; the latest step if none is ranked."""
    ranked = {step: rank for step, rank in ranks.items() if rank is not None and not math.isnan(rank)}
    return max(ranked or ranks, key=lambda step: (ranked.get(step, 0.0), step), default=None)
