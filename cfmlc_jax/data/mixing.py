"""Generated records beside the real ones of training batches (`pipeline.train_batches`)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.data.sources import MechanismSource


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated records in training batches, in place of real ones or beside them.

    source: the records.
    per_batch: number of them in each batch, over all processes, at least 1; the batch size: no real image is read.
    """

    source: MechanismSource
    per_batch: int


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The records of all steps by index: in each batch `count` generated ones, spread evenly.

    real: b − count records of each step; None if count is b.
    generated: count records of each step.
    """

    real: grain.MapDataset | None
    generated: grain.MapDataset
    batch_size: int
    count: int

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, within = divmod(index, self.batch_size)
        before = within * self.count // self.batch_size  # generated records before this one in the batch
        if self.real is None or (within + 1) * self.count // self.batch_size > before:
            return self.generated[step * self.count + before]
        return self.real[step * (self.batch_size - self.count) + within - before]


def of_real(position: int) -> dict[str, Any]:
    """What mixed batches add to the real record at a position: it is not generated, and its mechanisms are unknown."""
    return _entries(counterfactual=False, labels=[-1] * len(MECHANISMS))


@dataclasses.dataclass(frozen=True)
class OfGenerated:
    """A function like `of_real`, for the generated records of a source."""

    source: MechanismSource

    def __call__(self, position: int) -> dict[str, Any]:
        """What mixed batches add to the generated record at a position: its mechanisms' labels."""
        return _entries(counterfactual=True, labels=self.source.mechanisms[position].tolist())


def own_seed(seed: int) -> int:
    """The seed of the generated records, so that two records of the same place are not augmented alike."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])


def _entries(*, counterfactual: bool, labels: Sequence[int]) -> dict[str, Any]:
    return {
        "counterfactual": np.bool_(counterfactual),
        "mechanisms": {name: np.int32(label) for name, label in zip(MECHANISMS, labels, strict=True)},
    }
