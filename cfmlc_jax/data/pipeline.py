"""Batches of views from a source, the same for any number of threads, workers and processes."""

import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.errors import InputError, RunError

# More unreadable images one after another are no damage of a few files: a disk is not mounted, say.
MOST_IN_A_ROW = 100
SHARED_MEMORY = "/dev/shm"


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a process reads.

    process: its place among the processes.
    processes: how many there are.
    threads: that read, in each worker.
    workers: processes that read for this one; 0: it reads itself.
    skip: an image that cannot be read is left out, instead of being an error.
    """

    process: int = 0
    processes: int = 1
    threads: int = 8
    workers: int = 0
    skip: bool = False


@dataclasses.dataclass(frozen=True)
class Batches:
    """What can be gone through again and again: batches as dicts of arrays.

    Raises:
        InputError: an image that cannot be read, while going through them.
        RunError: a worker process died, or there is no room between it and this process.
    """

    dataset: grain.IterDataset
    workers: int

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        batches = None
        try:
            if self.workers:
                _start_tracker()
            batches = iter(self.dataset)
            yield from batches
        except OSError as error:
            # Images are read as `InputError`s: what is left is the traffic with workers.
            if not self.workers:
                raise
            raise _no_passage(error, self.workers) from error
        except RuntimeError as error:
            code = _exit_code(error)
            if code is None:
                raise
            raise _death(code, self.workers) from error
        finally:
            if batches is not None:
                batches.close()


def train_batches(
    source: Source,
    to_views: Transform,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    reading: Reading,
    reshuffle: bool = True,
    start_step: int = 0,
) -> Batches:
    """Shuffled batches {"views": uint8 [b, v, s, s, 3], "labels": float32 [b, k]} of all epochs.

    b is this process's share of `batch_size`, consecutive images. Every epoch has another order and
    drops what does not fill its last batch, as the reference drops it; every record has a random
    generator of its own. So a batch is a function of seed and step alone, whoever reads it, and a
    run that goes on at `start_step` gets exactly the batches that remain.

    With `reading.skip` an image that cannot be read is replaced by the next in the source's order that
    can, with that one's labels: again a function of seed, step and files alone. Batches have "replaced"
    then, int32 [b], the position in the source of what could not be read, else −1.

    Args:
        source: what to train on.
        to_views: the transform of records.
        batch_size: images, over all processes.
        epochs: how often to go through the source.
        seed: of order and augmentation.
        reading: this process's place.
        reshuffle: False: all epochs have the order of the first, as the reference's, whose sampler
            is never told the epoch; augmentations still differ.
        start_step: batches to leave out.
    """
    steps = len(source) // batch_size
    order = grain.MapDataset.source(_Positions(source)).seed(seed).shuffle()[: steps * batch_size]
    repeated = order.repeat(epochs, reseed_each_epoch=reshuffle)
    records = repeated.random_map(_TrainRecord(source, to_views, reading.skip))
    share = batch_size // reading.processes
    places = grain.MapDataset.range(start_step * share, steps * epochs * share)
    mine = places.map(_Share(records, share, reading.process, reading.processes))
    return Batches(_read(mine, reading).batch(share, drop_remainder=True), reading.workers)


def evaluation_batches(source: Source, to_views: Transform, *, batch_size: int, reading: Reading) -> Batches:
    """All records once, in order: {"views", "labels", "index": int32 [b], position in the source}.

    The last batch is filled up with blank records of index −1, so that every process has the same
    number of batches of one shape. With `reading.skip` an image that cannot be read is such a blank.
    """
    padded = -(-len(source) // batch_size) * batch_size
    positions = grain.MapDataset.range(padded)[reading.process :: reading.processes]
    records = positions.map(_EvaluationRecord(source, to_views, reading.skip))
    share = batch_size // reading.processes
    return Batches(_read(records, reading).batch(share, drop_remainder=True), reading.workers)


def why_unreadable(source: Source, to_views: Transform, position: int) -> str:
    """The line on an image that could not be read, by reading it once more."""
    try:
        to_views(source[position], np.random.default_rng(0))
    except InputError as error:
        return str(error)
    return f"{source.ids[position]}: could not be read at first; look at the disk"


def _read(records, reading):
    # Single records are read ahead, not whole batches: 16 of a batch of 128 at 448 px are 50 MB.
    options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=2 * reading.threads)
    dataset = records.to_iter_dataset(options)
    if reading.workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=reading.workers, per_worker_buffer_size=16),
            worker_init_fn=_end_with_parent,
        )
    return dataset


def _end_with_parent(worker: int, workers: int) -> None:
    """Let a worker process end when the run is killed; it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=[parent.sentinel], daemon=True).start()


def _start_tracker():
    """Start Python's tracker of shared memory before a worker does: it would leave SIGINT unblocked there.

    Workers inherit from this thread that a terminal's Ctrl-C is not theirs (`cli.end_at_interrupt`).
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exit_code(error):
    """Of a worker that died, from Grain's words; None for other errors."""
    _, found, after = str(error).partition("terminated unexpectedly with exit code ")
    return int(after.partition(".")[0]) if found else None


def _death(code, workers):
    if code == -signal.SIGBUS:  # Linux lets a full shared memory be found out on writing
        return _no_room("bus error", workers)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    reason = "; the machine is out of memory, most likely" if code == -signal.SIGKILL else ""
    return RunError(
        f"a worker process that reads images died ({how}{reason}); the last checkpoint is intact; lower "
        f"config.data.workers ({workers}) or config.data.threads, or set data.workers to 0"
    )


def _no_passage(error, workers):
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return _no_room(reason, workers)
    return RunError(
        f"images cannot be handed over by the {workers} workers ({reason}); the last checkpoint is intact; "
        "lower config.data.workers, or set it to 0"
    )


def _no_room(reason, workers):
    size = shutil.disk_usage(SHARED_MEMORY).total / 2**20 if os.path.isdir(SHARED_MEMORY) else 0
    return RunError(
        f"{SHARED_MEMORY} ({size:.0f} MB), through which the {workers} workers hand over images, is full "
        f"({reason}); the last checkpoint is intact; start the container with --shm-size=8g, or set config.data.workers=0"
    )


class _Positions:
    """The positions 0 … n − 1 of a source in its place: what reads the records may go on to another one."""

    def __init__(self, source: Source):
        self._length, self._name = len(source), repr(source)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        return int(position)

    def __repr__(self) -> str:
        return self._name


@dataclasses.dataclass(frozen=True)
class _TrainRecord:
    """A record's views and labels, augmented with the generator that Grain derives for it."""

    source: Source
    to_views: Transform
    skip: bool

    def __call__(self, position: int, generator: np.random.Generator) -> dict[str, Any]:
        example, read = self._readable(position, generator)
        found = {"views": example["views"], "labels": example["labels"]}
        return found | {"replaced": np.int32(-1 if read else position)} if self.skip else found

    def _readable(self, position, generator):
        """The example, and whether it is the one at this position."""
        first = None
        for step in range(MOST_IN_A_ROW):
            try:
                place = (position + step) % len(self.source)
                return self.to_views(self.source[place], generator), step == 0
            except InputError as error:
                first = first or error
                if not self.skip:
                    raise
        raise InputError(f"{MOST_IN_A_ROW} images in a row cannot be read, the first: {first}")


@dataclasses.dataclass(frozen=True)
class _Share:
    """A place among one process's records -> the record, of those of all processes.

    Shares are consecutive parts of a batch, so that the batch on the devices has the same order,
    and its groups of images the same members, for any number of processes.
    """

    records: grain.MapDataset
    share: int
    process: int
    processes: int

    def __call__(self, place: int) -> dict[str, Any]:
        step, within = divmod(place, self.share)
        return self.records[(step * self.processes + self.process) * self.share + within]


@dataclasses.dataclass(frozen=True)
class _EvaluationRecord:
    """Views, labels and position of a record; blank with position −1 beyond the source's end."""

    source: Source
    to_views: Transform
    skip: bool

    def __call__(self, position: int) -> dict[str, Any]:
        if position >= len(self.source):
            return self._blank()
        try:
            example = self.to_views(self.source[position])
        except InputError:
            if not self.skip:
                raise
            return self._blank()
        return {"views": example["views"], "labels": example["labels"], "index": np.int32(position)}

    def _blank(self):
        side = self.to_views.size
        return {
            "views": np.zeros((self.to_views.num_views, side, side, 3), np.uint8),
            "labels": np.zeros(len(self.source.class_names), np.float32),
            "index": np.int32(-1),
        }
