"""Batches of views from a source, the same for any number of threads, workers and processes."""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import threading
from typing import Any

import grain
import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.transforms import Transform


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a process reads: its place among the processes, its threads and its worker processes."""

    process: int = 0
    processes: int = 1
    threads: int = 8
    workers: int = 0


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
) -> grain.IterDataset:
    """Shuffled batches {"views": uint8 [b, v, s, s, 3], "labels": float32 [b, k]} of all epochs.

    b is this process's share of `batch_size`, consecutive images. Every epoch has another order and
    drops what does not fill its last batch, as the reference drops it; every record has a random
    generator of its own. So a batch is a function of seed and step alone, whoever reads it, and a
    run that goes on at `start_step` gets exactly the batches that remain.

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
    order = grain.MapDataset.source(source).seed(seed).shuffle()[: steps * batch_size]
    repeated = order.repeat(epochs, reseed_each_epoch=reshuffle)
    records = repeated.random_map(_TrainRecord(to_views))
    share = batch_size // reading.processes
    places = grain.MapDataset.range(start_step * share, steps * epochs * share)
    mine = places.map(_Share(records, share, reading.process, reading.processes))
    return _read(mine, reading).batch(share, drop_remainder=True)


def evaluation_batches(
    source: Source, to_views: Transform, *, batch_size: int, reading: Reading
) -> grain.IterDataset:
    """All records once, in order: {"views", "labels", "index": int32 [b], position in the source}.

    The last batch is filled up with blank records of index −1, so that every process has the same
    number of batches of one shape.
    """
    padded = -(-len(source) // batch_size) * batch_size
    positions = grain.MapDataset.range(padded)[reading.process :: reading.processes]
    records = positions.map(_EvaluationRecord(source, to_views))
    return _read(records, reading).batch(batch_size // reading.processes, drop_remainder=True)


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


@dataclasses.dataclass(frozen=True)
class _TrainRecord:
    """A record's views and labels, augmented with the generator that Grain derives for it."""

    to_views: Transform

    def __call__(self, record: Any, generator: np.random.Generator) -> dict[str, Any]:
        example = self.to_views(record, generator)
        return {"views": example["views"], "labels": example["labels"]}


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

    def __call__(self, position: int) -> dict[str, Any]:
        inside = position < len(self.source)
        example = self.to_views(self.source[position if inside else 0])
        views = example["views"] if inside else np.zeros_like(example["views"])
        return {
            "views": views,
            "labels": example["labels"],
            "index": np.int32(position if inside else -1),
        }
