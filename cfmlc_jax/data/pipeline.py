"""Batches of views from a source, identical for any number of threads, workers and processes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from cfmlc_jax.data import mixing, workers
from cfmlc_jax.data.mixing import Generated, Mixed
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.data.weighting import Drawn, Weighting
from cfmlc_jax.data.workers import Batches, Reading
from cfmlc_jax.errors import InputError

# So many consecutive unreadable images are not a few damaged files but a disk that is not mounted, for example.
MOST_IN_A_ROW = 100


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
    weighting: Weighting | None = None,
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

    With `weighting`, an epoch has as many real images, and each of them about as often as its weight.

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
        weighting: how often each image of the source is drawn; None: once in an epoch.
    """
    steps = steps_per_epoch(source, batch_size, generated)
    if generated is None:
        records = _repeated(
            _TrainRecord(source, to_views, reading.skip),
            weighting,
            weighted_from=0 if weighting is None else (weighting.from_epoch - 1) * steps * batch_size,
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
            weighting,
            steps=steps,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            skip=reading.skip,
            reshuffle=reshuffle,
        )
    share = batch_size // reading.processes
    places = grain.MapDataset.range(start_step * share, steps * epochs * share)
    mine = places.map(Share(records, share, reading.process, reading.processes))
    return workers.batches(mine, to_views, share, reading)


def _repeated(
    records: "_TrainRecord",
    weighting: Weighting | None = None,
    *,
    weighted_from: int = 0,
    first: int,
    times: int,
    seed: int,
    reshuffle: bool,
) -> grain.MapDataset:
    """Records in a random order: the first ones of it, so many times, each time in a new order with `reshuffle`.

    From the record `weighted_from` on they are drawn by weights.
    """
    order = grain.MapDataset.source(_Positions(records.source)).seed(seed).shuffle()[:first]
    order = order.repeat(times, reseed_each_epoch=reshuffle)
    each_once = order.random_map(records)
    if weighting is None or weighted_from >= len(order):
        return each_once
    by_weight = order.random_map(dataclasses.replace(records, drawn=weighting.drawn()))
    if weighted_from == 0:
        return by_weight
    return grain.MapDataset.concatenate([each_once[:weighted_from], by_weight[weighted_from:]])


def _mixed(
    source: Source,
    generated: Generated,
    to_views: Transform,
    weighting: Weighting | None,
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

    def real_before(step):
        """The number of real images in the batches before a step."""
        return step * (batch_size - count) + min(step, from_step) * count

    num_real = real_before(steps * epochs)
    weighted_from = 0 if weighting is None else real_before((weighting.from_epoch - 1) * steps)
    # Epochs of mixed batches, in which each real image is read once; or all images, if these batches have none.
    first, every = steps * (batch_size - count) or len(source), len(generated.source)
    return Mixed(
        _repeated(
            real,
            weighting,
            weighted_from=weighted_from,
            first=first,
            times=-(-num_real // first),
            seed=seed,
            reshuffle=reshuffle,
        ),
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
    drawn: chooses the image that is read at a position; None: each image is read at its own.
    """

    source: Source
    to_views: Transform
    skip: bool
    mechanisms: Callable[[int], dict[str, Any]] | None = None
    drawn: Drawn | None = None

    def __call__(self, position: int, generator: np.random.Generator) -> dict[str, Any]:
        if self.drawn is not None:
            position = self.drawn(position, generator)
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
class Share:
    """Maps an index among one process's records to the record among those of all processes.

    Each process reads a consecutive part of a batch. The global batch therefore has the same order,
    and its norm groups the same images, for any number of processes.
    """

    records: grain.MapDataset | Mixed
    share: int
    process: int
    processes: int

    def __call__(self, place: int) -> dict[str, Any]:
        """The record of this process at an index."""
        step, within = divmod(place, self.share)
        return self.records[(step * self.processes + self.process) * self.share + within]
