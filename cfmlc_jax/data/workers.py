"""Reads records into batches: in this process, or in workers that stack sub-batches and pass them on by shared memory."""

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

from cfmlc_jax.data import spawn
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.errors import BucketError, RunError

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
                spawn.install()
            batches = iter(self.dataset)
            yield from batches
        except BucketError:
            raise
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
class Pass:
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


def batches(records: grain.MapDataset, to_views: Transform, share: int, reading: Reading) -> Batches:
    """Batches of consecutive records.

    Args:
        records: of this process.
        to_views: their transform.
        share: records in a batch of this process.
        reading: how this process reads.
    """
    reading = chosen(reading, len(records), share, to_views)
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


def chosen(reading: Reading, images: int, share: int, to_views: Transform) -> Reading:
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
    # A scheduler may send SIGTERM to all processes of a run: the parent saves, for which it needs its workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
    """Start Python's tracker of shared memory here, because starting it in a worker would unblock SIGINT and SIGTERM there.

    Workers of a command inherit these blocked from this thread, so that a terminal's Ctrl-C does not reach them, nor
    SIGTERM while they start (`cli.end_at_interrupt`).
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
        f"a worker process that reads images died ({how}{reason}); what was saved is intact; lower "
        f"config.data.workers ({workers}) or config.data.threads, or set data.workers to 0"
    )


def _transfer_error(error, workers):
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return _full_shared_memory(reason, workers)
    return RunError(
        f"the {workers} workers cannot pass on their images ({reason}); what was saved is intact; "
        "lower config.data.workers, or set it to 0"
    )


def _full_shared_memory(reason, workers):
    size = shutil.disk_usage(SHARED_MEMORY).total / 2**20 if os.path.isdir(SHARED_MEMORY) else 0
    return RunError(
        f"{SHARED_MEMORY} ({size:.0f} MB), through which the {workers} workers pass on images, is full "
        f"({reason}); what was saved is intact; start the container with --shm-size=8g, or set config.data.workers=0"
    )


class Same:
    """Equal for the same object alone; keeps the object."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
