"""Generated records beside the real ones of training batches (`pipeline.train_batches`)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.data.sources import MechanismSource, Source


@dataclasses.dataclass(frozen=True)
class Generated:
    """Generated records in training batches, in place of real ones or beside them.

    source: the records; a `MechanismSource` or a multi-label one.
    per_batch: number of them in each batch, over all processes, at least 1; the batch size: no real image is read.
    from_epoch: the first epoch that has them, counted from 1, at most the last; batches before it are of real images.
    """

    source: Source
    per_batch: int
    from_epoch: int = 1


@dataclasses.dataclass(frozen=True)
class Mixed:
    """The records of all steps by index: in each batch `count` generated ones, spread evenly.

    real: b − count records of each step, and b of each before `from_step`; None if no step has any.
    generated: count records of each step from `from_step`.
    from_step: the first step with generated records.
    """

    real: grain.MapDataset | None
    generated: grain.MapDataset
    batch_size: int
    count: int
    from_step: int = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, within = divmod(index - self.from_step * self.batch_size, self.batch_size)
        if self.real is not None and step < 0:
            return self.real[index]
        before = within * self.count // self.batch_size  # generated records before this one in the batch
        if self.real is None or (within + 1) * self.count // self.batch_size > before:
            return self.generated[step * self.count + before]
        joined = self.from_step * self.batch_size  # real records before the first generated one
        return self.real[joined + step * (self.batch_size - self.count) + within - before]


def entries(source: Source) -> tuple[Callable[[int], dict], Callable[[int], dict]]:
    """What mixed batches add to a record at a position: two functions, for real records and for generated ones.

    Args:
        source: the generated records. Multi-label ones have no mechanisms.
    """
    if isinstance(source, MechanismSource):
        return of_real, OfGenerated(source)
    return Marked(False), Marked(True)


@dataclasses.dataclass(frozen=True)
class Marked:
    """A function like `of_real`, where records have no mechanisms."""

    counterfactual: bool

    def __call__(self, position: int) -> dict[str, Any]:
        """Whether the record is generated."""
        return {"counterfactual": np.bool_(self.counterfactual)}


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
