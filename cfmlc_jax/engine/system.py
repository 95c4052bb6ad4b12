"""The contract between the engine and what it trains."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Update(NamedTuple):
    """The outcome of one training step.

    learned: what the system has learned, updated; of the structure, shapes and types that came in.
    values: float scalars by the names in `System.values`; their means are logged.
    watched: (name, pytree) pairs; of values that are not finite the first in this order is reported.
        Empty: `values`.
    """

    learned: dict[str, Any]
    values: dict[str, Any]
    watched: Sequence[tuple[str, Any]] = ()


class System(Protocol):
    """What a run trains. `learned` is a dict of pytrees: parameters, statistics, averages, optimiser states, …"""

    @property
    def values(self) -> Sequence[str]:
        """Names of the scalars that an update returns; the first is shown while training."""

    @property
    def selection(self) -> str:
        """The metric of `validate` by which the best checkpoint is chosen, larger is better."""

    def init(self, key) -> dict[str, Any]:
        """What is learned before the first step; traced, so that it is born sharded."""

    def update(self, learned: dict[str, Any], batch, key, step) -> Update:
        """One step on a global batch; traced and compiled by the engine, which donates `learned`.

        Args:
            learned: before the step.
            batch: arrays, their leading axis split over all devices.
            key: random key of this step.
            step: int32, updates done before this one.
        """

    def split(self, learned: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What prediction needs, and the rest: two dicts whose union is `learned`."""

    def readings(self, learned: dict[str, Any]) -> dict[str, Any]:
        """Scalars that are logged as they stand, not averaged: learning rates, say."""

    def validate(self, learned: dict[str, Any], poll: Callable[[], None]) -> dict[str, dict[str, float]]:
        """Metrics by set of weights ("weights", "average"), after an epoch; the last set is what predicts.

        Args:
            learned: as trained so far.
            poll: to be called now and then; raises where the run is asked to end.
        """
