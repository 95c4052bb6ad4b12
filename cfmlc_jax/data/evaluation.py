"""Batches of a whole split in order, for validation and evaluation."""

import dataclasses
from typing import Any

import grain
import numpy as np

from cfmlc_jax.data import workers
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.patches import Transform
from cfmlc_jax.data.workers import Batches, Pass, Reading
from cfmlc_jax.errors import InputError


def evaluation_batches(
    source: Source, to_views: Transform, *, batch_size: int, reading: Reading
) -> Batches | Pass:
    """All records once, in order: batches {"views", "labels", "index": int32 [b], the position in the source}.

    The last batch is padded with blank records of index −1, so that every process has the same
    number of batches of the same shape. With `reading.skip` an unreadable image becomes such a blank too.
    """
    padded = -(-len(source) // batch_size) * batch_size
    positions = grain.MapDataset.range(padded)[reading.process :: reading.processes]
    record = _EvaluationRecord(source, to_views, reading.skip)
    share = batch_size // reading.processes

    reading = workers.chosen(reading, len(positions), share, to_views)
    if not reading.workers or reading.standing is None:
        return workers.batches(positions.map(record), to_views, share, reading)

    def endless():
        return workers.batches(positions.repeat().map(record), to_views, share, reading)

    return Pass(reading.standing, (workers.Same(source), to_views, batch_size), endless, padded // batch_size)


def why_unreadable(source: Source, to_views: Transform, position: int) -> str:
    """The error message of an image that could not be read, found by reading it again."""
    try:
        to_views(source[position], np.random.default_rng(0))
    except InputError as error:
        return str(error)
    return f"{source.ids[position]}: could not be read at first, but can be read now; check the disk"


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
