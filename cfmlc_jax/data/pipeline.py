"""Batches of views from a source, identical for any number of threads, workers and processes."""

import ctypes
import dataclasses
import errno
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain
import jax
import numpy as np

from cfmlc_jax.data import mixing
from cfmlc_jax.data.mixing import Generated, Mixed
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.errors import InputError, RunError

# So many consecutive unreadable images are not a few damaged files but a disk that is not mounted, for example.
MOST_IN_A_ROW = 100
SHARED_MEMORY = "/dev/shm"
# Greatest size of a sub-batch: large enough that passing it on costs little, small enough for a few per worker.
SUB_BATCH_IMAGES, SUB_BATCH_BYTES = 16, 16 * 2**20
_BUFFERED = 2  # finished sub-batches that wait in a worker, and again as many that wait in this process
# `Reading.workers` that stands for a number chosen by `automatic_workers`.
AUTOMATIC = -1
# Views of fewer bytes are read in a minute of one core; that is not worth starting workers.
_SMALL = 6 * 10**9
_FEWEST_CORES, _MOST_WORKERS = 4, 32
_THREADS = 2  # in each of an automatic number of workers: one reads files while the other computes
# Larger arrays of a batch stay in the parts in which workers made them.
_LARGE = 2**20


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a process reads images.

    process: index of this process.
    processes: number of processes.
    threads: reading threads in each worker.
    workers: worker processes that read for this process; 0: it reads itself; `AUTOMATIC`: see `automatic_workers`.
    skip: whether unreadable images are skipped; otherwise they are errors.
    devices: devices of this process; a sub-batch of a worker is never for two of them.
    standing: keeps the workers of `evaluation_batches` for the next pass; None: they end with each pass.
    """

    process: int = 0
    processes: int = 1
    threads: int = 8
    workers: int = 0
    skip: bool = False
    devices: int = 1
    standing: "Standing | None" = None


Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Batches:
    """An iterable of batches, dicts of arrays, that can be iterated any number of times.

    With workers, a large array may be a list of arrays, its consecutive rows as the workers made them, which
    `engine.mesh.to_devices` puts on the devices one by one.

    Raises:
        InputError: during iteration, an image cannot be read.
        RunError: during iteration, a worker process died, or the shared memory for its images is full.
    """

    dataset: grain.IterDataset
    workers: int

    def __iter__(self) -> Iterator[Batch]:
        batches = None
        try:
            if self.workers:
                _start_tracker()
            batches = iter(self.dataset)
            yield from batches
        except OSError as error:
            # Errors of images are `InputError`s, so this one comes from the communication with workers.
            if not self.workers:
                raise
            raise _transfer_error(error, self.workers) from error
        except RuntimeError as error:
            code = _exit_code(error)
            if code is None:
                raise
            raise _death(code, self.workers) from error
        finally:
            if batches is not None:
                batches.close()


class Standing:
    """Keeps the workers of one split between the passes of `evaluation_batches`, for validations after each epoch.

    Starting workers takes seconds. These wait between two passes, with the first images of the next already read.
    """

    def __init__(self):
        self._key: tuple | None = None
        self._batches: Iterator[Batch] | None = None

    def take(self, key: tuple, endless: Callable[[], Batches]) -> Iterator[Batch]:
        """The batches that were given back with an equal key, otherwise those of `endless`; the caller owns them."""
        if self._batches is not None and self._key == key:
            batches, self._batches = self._batches, None
            return batches
        self.close()
        return iter(endless())

    def give_back(self, key: tuple, batches: Iterator[Batch]) -> None:
        """Keep batches of which a whole number of passes was read."""
        self._key, self._batches = key, batches

    def close(self) -> None:
        """End the workers."""
        if self._batches is not None:
            self._batches.close()  # type: ignore[attr-defined]  # a generator
        self._key = self._batches = None


@dataclasses.dataclass(frozen=True)
class _Pass:
    """An iterable of the next `count` batches of `endless`, whose workers `standing` keeps afterwards."""

    standing: Standing
    key: tuple
    endless: Callable[[], Batches]
    count: int

    def __iter__(self) -> Iterator[Batch]:
        batches = self.standing.take(self.key, self.endless)
        complete = False
        try:
            for _ in range(self.count):
                yield next(batches)
            complete = True
        finally:
            if complete:
                self.standing.give_back(self.key, batches)
            else:
                batches.close()  # type: ignore[attr-defined]  # a generator


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
    generated: Generated | None = None,
) -> Batches:
    """Shuffled batches {"views": uint8 [b, v, s, s, 3], "labels": float32 [b, k]} of all epochs.

    b is this process's share of `batch_size`, consecutive images. Every epoch has a different order and
    drops an incomplete last batch, as in the reference; every record has its own random
    generator. So a batch is a function of seed and step alone, whichever process reads it, and a
    run that resumes at `start_step` gets exactly the remaining batches.

    With `reading.skip` an unreadable image is replaced by the next readable one in the source's order, with
    that image's labels: a batch is then a function of seed, step and files. Batches also have "replaced",
    int32 [b], the position in the source of each image that was replaced, else −1.

    With `generated`, real and generated records alternate in a batch as evenly as their numbers allow. Batches
    also have "counterfactual", bool [b], true for generated records, and if these have mechanisms "mechanisms", the
    label int32 [b] of each mechanism by name; −1 for real images, whose mechanisms are unknown. An epoch is of the real
    images; the generated records have their own order, and start again when all of them were used. If batches have no
    real image, an epoch is of the generated records. Before `generated.from_epoch`, epochs have as many steps, but of
    real images alone: of share .5 each image is then read twice in an epoch.

    Args:
        source: the training data.
        to_views: the transform of records.
        batch_size: images per batch, over all processes.
        epochs: number of passes through the source.
        seed: seed of order and augmentation.
        reading: how this process reads.
        reshuffle: False: all epochs have the order of the first, as in the reference, whose sampler
            does not receive the epoch; augmentations still differ.
        start_step: number of batches to skip.
        generated: generated records in each batch; None: none.
    """
    steps = steps_per_epoch(source, batch_size, generated)
    if generated is None:
        records = _repeated(
            _TrainRecord(source, to_views, reading.skip),
            first=steps * batch_size,
            times=epochs,
            seed=seed,
            reshuffle=reshuffle,
        )
    else:
        records = _mixed(
            source,
            generated,
            to_views,
            steps=steps,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            skip=reading.skip,
            reshuffle=reshuffle,
        )
    share = batch_size // reading.processes
    places = grain.MapDataset.range(start_step * share, steps * epochs * share)
    mine = places.map(_Share(records, share, reading.process, reading.processes))
    return _batches(mine, to_views, share, reading)


def _repeated(
    records: "_TrainRecord", *, first: int, times: int, seed: int, reshuffle: bool
) -> grain.MapDataset:
    """Records in a random order: the first ones of it, so many times, each time in a new order with `reshuffle`."""
    order = grain.MapDataset.source(_Positions(records.source)).seed(seed).shuffle()[:first]
    return order.repeat(times, reseed_each_epoch=reshuffle).random_map(records)


def _mixed(
    source: Source,
    generated: Generated,
    to_views: Transform,
    *,
    steps: int,
    batch_size: int,
    epochs: int,
    seed: int,
    skip: bool,
    reshuffle: bool,
) -> Mixed:
    """The real and generated records of all steps; the arguments are those of `train_batches`."""
    count, own = generated.per_batch, mixing.own_seed(seed)
    of_real, of_generated = mixing.entries(generated.source)
    drawn = _TrainRecord(generated.source, to_views, skip, of_generated)
    from_step = (generated.from_epoch - 1) * steps
    if count == batch_size and not from_step:
        first = steps * count
        alone = _repeated(drawn, first=first, times=epochs, seed=own, reshuffle=reshuffle)
        return Mixed(None, alone, batch_size, count)
    real = _TrainRecord(source, to_views, skip, of_real)
    mixed_steps = steps * epochs - from_step
    num_real = from_step * batch_size + mixed_steps * (batch_size - count)
    # Epochs of mixed batches, in which each real image is read once; or all images, if these batches have none.
    first, every = steps * (batch_size - count) or len(source), len(generated.source)
    return Mixed(
        _repeated(real, first=first, times=-(-num_real // first), seed=seed, reshuffle=reshuffle),
        _repeated(drawn, first=every, times=-(-mixed_steps * count // every), seed=own, reshuffle=reshuffle),
        batch_size,
        count,
        from_step,
    )


def steps_per_epoch(source: Source, batch_size: int, generated: Generated | None = None) -> int:
    """The number of full batches in an epoch of `train_batches`."""
    real = batch_size if generated is None else batch_size - generated.per_batch
    if generated is not None and real == 0:
        return len(generated.source) // batch_size
    return len(source) // real


def evaluation_batches(
    source: Source, to_views: Transform, *, batch_size: int, reading: Reading
) -> Batches | _Pass:
    """All records once, in order: batches {"views", "labels", "index": int32 [b], the position in the source}.

    The last batch is padded with blank records of index −1, so that every process has the same
    number of batches of the same shape. With `reading.skip` an unreadable image becomes such a blank too.
    """
    padded = -(-len(source) // batch_size) * batch_size
    positions = grain.MapDataset.range(padded)[reading.process :: reading.processes]
    record = _EvaluationRecord(source, to_views, reading.skip)
    share = batch_size // reading.processes

    reading = _chosen(reading, len(positions), share, to_views)
    if not reading.workers or reading.standing is None:
        return _batches(positions.map(record), to_views, share, reading)

    def endless():
        return _batches(positions.repeat().map(record), to_views, share, reading)

    return _Pass(reading.standing, (_Same(source), to_views, batch_size), endless, padded // batch_size)


def why_unreadable(source: Source, to_views: Transform, position: int) -> str:
    """The error message of an image that could not be read, found by reading it again."""
    try:
        to_views(source[position], np.random.default_rng(0))
    except InputError as error:
        return str(error)
    return f"{source.ids[position]}: could not be read at first, but can be read now; check the disk"


def _batches(records, to_views, share, reading) -> Batches:
    """Batches of `share` consecutive records."""
    reading = _chosen(reading, len(records), share, to_views)
    if not reading.workers:
        # Prefetch single records, not whole batches: 16 records of five views at 448 px take 50 MB.
        options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=2 * reading.threads)
        return Batches(records.to_iter_dataset(options).batch(share, drop_remainder=True), 0)
    # Records are stacked where they are read: in this process, all of them would wait for one thread.
    images = sub_batch(share, reading.devices, image_bytes(to_views))
    options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=reading.threads)
    parts = records.batch(images, drop_remainder=True).to_iter_dataset(options)
    parts = parts.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=reading.workers, per_worker_buffer_size=_BUFFERED),
        worker_init_fn=_prepare_worker,
    )
    return Batches(parts.batch(share // images, drop_remainder=True, batch_fn=_joined), reading.workers)


def _chosen(reading, images, share, to_views) -> Reading:
    """The same reading; an automatic number of workers is chosen for so many images."""
    if reading.workers != AUTOMATIC:
        return reading
    workers = automatic_workers(images, share, reading.devices, image_bytes(to_views))
    threads = min(reading.threads, _THREADS) if workers else reading.threads
    return dataclasses.replace(reading, workers=workers, threads=threads)


def image_bytes(to_views: Transform) -> int:
    """Bytes of the views of one image."""
    return to_views.num_views * to_views.size**2 * 3


def sub_batch(share: int, devices: int, bytes_per_image: int) -> int:
    """The number of images that a worker stacks: it divides the images of each device, or of all if they differ.

    Args:
        share: images of this process in a batch.
        devices: devices of this process.
        bytes_per_image: of its views.
    """
    whole = share // devices if share % devices == 0 else share
    most = min(SUB_BATCH_IMAGES, max(1, SUB_BATCH_BYTES // bytes_per_image))
    return max(images for images in range(1, min(most, whole) + 1) if whole % images == 0)


def automatic_workers(images: int, share: int, devices: int, bytes_per_image: int) -> int:
    """The number of workers for `AUTOMATIC`. Batches do not depend on it.

    Half of the cores, at most 32. None with few cores, which the threads of one process can keep busy; for data
    that one core reads in a minute; and where shared memory is small, as in containers by default.

    Args:
        images: all that are read.
        share: images of this process in a batch.
        devices: devices of this process.
        bytes_per_image: of its views.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < _FEWEST_CORES or images * bytes_per_image < _SMALL:
        return 0
    workers = min(cores // 2, _MOST_WORKERS)
    if os.path.isdir(SHARED_MEMORY):
        each = (2 * _BUFFERED + 1) * sub_batch(share, devices, bytes_per_image) * bytes_per_image
        # The other half is for the workers of a validation.
        workers = min(workers, shutil.disk_usage(SHARED_MEMORY).free // 2 // each)
    return workers


def _joined(parts: Sequence[Batch]) -> Batch:
    """A batch of sub-batches; arrays of many bytes are not copied, but become lists."""

    def join(*arrays):
        if len(arrays) == 1:
            return arrays[0]
        return list(arrays) if arrays[0].nbytes >= _LARGE else np.concatenate(arrays)

    return jax.tree.map(join, *parts)


def _prepare_worker(worker: int, workers: int) -> None:
    _keep_memory()
    _end_with_parent(worker, workers)


def _keep_memory():
    """Let this process keep freed memory, for the next image.

    glibc returns it to the kernel, which clears every page again: a fifth of a worker's time at 448 px.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mmap_threshold, trim_threshold, arenas = -3, -1, -8
        mallopt(arenas, 1)
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**28)


def _end_with_parent(worker: int, workers: int) -> None:
    """Let a worker process end when the run is killed; otherwise it would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=[parent.sentinel], daemon=True).start()


def _start_tracker():
    """Start Python's tracker of shared memory here, because starting it in a worker would unblock SIGINT there.

    Workers inherit this thread's blocked SIGINT, so that a terminal's Ctrl-C does not reach them
    (`cli.end_at_interrupt`).
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _exit_code(error):
    """Exit code of a worker that died, from Grain's message; None for other errors."""
    _, separator, after = str(error).partition("terminated unexpectedly with exit code ")
    return int(after.partition(".")[0]) if separator else None


def _death(code, workers):
    if code == -signal.SIGBUS:  # how Linux reports full shared memory, when it is written to
        return _full_shared_memory("bus error", workers)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    reason = "; most likely the machine is out of memory" if code == -signal.SIGKILL else ""
    return RunError(
        f"a worker process that reads images died ({how}{reason}); the last checkpoint is intact; lower "
        f"config.data.workers ({workers}) or config.data.threads, or set data.workers to 0"
    )


def _transfer_error(error, workers):
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return _full_shared_memory(reason, workers)
    return RunError(
        f"the {workers} workers cannot pass on their images ({reason}); the last checkpoint is intact; "
        "lower config.data.workers, or set it to 0"
    )


def _full_shared_memory(reason, workers):
    size = shutil.disk_usage(SHARED_MEMORY).total / 2**20 if os.path.isdir(SHARED_MEMORY) else 0
    return RunError(
        f"{SHARED_MEMORY} ({size:.0f} MB), through which the {workers} workers pass on images, is full "
        f"({reason}); the last checkpoint is intact; start the container with --shm-size=8g, or set config.data.workers=0"
    )


class _Same:
    """Equal for the same object alone; keeps the object."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


class _Positions:
    """The positions 0 … n − 1 of a source, so that `_TrainRecord` can read another position if one is unreadable."""

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
    """Reads a record's views and labels, augmented with the generator that Grain derives for it.

    mechanisms: position -> the entries of a record of mixed batches; None: batches are not mixed.
    """

    source: Source
    to_views: Transform
    skip: bool
    mechanisms: Callable[[int], dict[str, Any]] | None = None

    def __call__(self, position: int, generator: np.random.Generator) -> dict[str, Any]:
        example, place = self._readable(position, generator)
        record = {"views": example["views"], "labels": example["labels"]}
        if self.mechanisms is not None:
            record |= self.mechanisms(place)
        return record | {"replaced": np.int32(-1 if place == position else position)} if self.skip else record

    def _readable(self, position, generator):
        """The first readable example from this position on, and its position."""
        first = None
        for step in range(MOST_IN_A_ROW):
            place = (position + step) % len(self.source)
            try:
                return self.to_views(self.source[place], generator), place
            except InputError as error:
                first = first or error
                if not self.skip:
                    raise
        raise InputError(f"{MOST_IN_A_ROW} consecutive images cannot be read; the first: {first}")


@dataclasses.dataclass(frozen=True)
class _Share:
    """Maps an index among one process's records to the record among those of all processes.

    Each process reads a consecutive part of a batch. The global batch therefore has the same order,
    and its norm groups the same images, for any number of processes.
    """

    records: grain.MapDataset | Mixed
    share: int
    process: int
    processes: int

    def __call__(self, place: int) -> dict[str, Any]:
        step, within = divmod(place, self.share)
        return self.records[(step * self.processes + self.process) * self.share + within]


@dataclasses.dataclass(frozen=True)
class _EvaluationRecord:
    """Reads views, labels and position of a record; beyond the source's end, a blank with position −1."""

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
