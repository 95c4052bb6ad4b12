"""Training batches of regions: of each image as many of its regions, some of them with objects."""

import dataclasses
from typing import Any

import grain
import numpy as np

from cfmlc_jax.data.pipeline import Share
from cfmlc_jax.data.regions.records import RegionRecords
from cfmlc_jax.data.workers import Batches, Reading


def train_batches(
    records: RegionRecords,
    *,
    batch_size: int,
    regions: int,
    foreground: float,
    epochs: int,
    seed: int,
    reading: Reading,
    start_step: int = 0,
) -> Batches:
    """Shuffled batches {"features": [b, r, s, …], "labels": int32 [b, r, s]} of all epochs.

    b is this process's share of `batch_size`. Each epoch has another order of the images, and drops an incomplete last
    batch. A batch is a function of seed and step alone, whichever process reads it.

    Args:
        records: with labels.
        batch_size: images per batch, over all processes.
        regions: r, of an image in each stage; where there are fewer, the rest have label −1.
        foreground: greatest share of them that have an object.
        epochs: number of passes through the images.
        seed: of order and choice.
        reading: how this process reads; its workers are not used, as nothing is decoded.
        start_step: number of batches to skip.
    """
    steps = len(records) // batch_size
    share = batch_size // reading.processes
    order = grain.MapDataset.range(len(records)).seed(seed).shuffle()[: steps * batch_size]
    chosen = order.repeat(epochs, reseed_each_epoch=True).random_map(_Chosen(records, regions, foreground))
    places = grain.MapDataset.range(start_step * share, steps * epochs * share)
    mine = places.map(Share(chosen, share, reading.process, reading.processes))
    options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=2 * reading.threads)
    return Batches(mine.to_iter_dataset(options).batch(share, drop_remainder=True), 0)


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """Draws regions of an image, in each stage by that stage's labels, with the generator that Grain derives for it."""

    records: RegionRecords
    regions: int
    foreground: float

    def __call__(self, image: int, generator: np.random.Generator) -> dict[str, Any]:
        stored = self.records[image]
        assert stored.labels is not None, "training needs labels"
        background = len(self.records.categories)
        features = np.zeros((self.regions, *stored.features.shape[1:]), stored.features.dtype)
        labels = np.full((self.regions, self.records.stages), -1, np.int32)
        for stage in range(self.records.stages):
            own = np.asarray(stored.labels[:, stage])
            rows = choose(own, background, self.regions, self.foreground, generator)
            features[: len(rows), stage] = stored.features[rows, stage]
            labels[: len(rows), stage] = own[rows]
        return {"features": features, "labels": labels}


def choose(
    labels, background: int, most: int, foreground: float, generator: np.random.Generator
) -> np.ndarray:
    """Rows of the regions to train on: those with objects at random, then background at random, int64 [at most `most`].

    Args:
        labels: [r]; those below 0 are never chosen.
        background: its label.
        most: greatest number of rows.
        foreground: greatest share of `most` that has an object.
        generator: draws the rows.
    """
    objects = np.flatnonzero((labels >= 0) & (labels != background))
    objects = generator.permutation(objects)[: int(most * foreground)]
    rest = generator.permutation(np.flatnonzero(labels == background))[: most - len(objects)]
    return np.concatenate([objects, rest])
