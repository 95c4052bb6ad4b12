"""The contract between the engine and the system that it trains."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Update(NamedTuple):
    """The result of one training step.

    learned: the new `learned`, of the same structure, shapes and dtypes as the old one.
    values: float scalars by the names in `System.values`; the engine logs their means.
    watched: (name, pytree) pairs that must be finite. If several are not, the engine names the first in
        this order. Empty: the engine checks `values`.
    """

    learned: dict[str, Any]
    values: dict[str, Any]
    watched: Sequence[tuple[str, Any]] = ()


class System(Protocol):
    """What a run trains.

    `learned` is everything that training changes, as one dict of pytrees: parameters, batch statistics,
    moving averages, optimiser states.
    """

    @property
    def values(self) -> Sequence[str]:
        """Names of the scalars that `update` returns; the progress line shows the first."""

    @property
    def selection(self) -> str:
        """The metric of `validate` that chooses the best checkpoint; larger is better."""

    def init(self, key) -> dict[str, Any]:
        """`learned` before the first step. The engine compiles it, so that it is created sharded."""

    def update(self, learned: dict[str, Any], batch, key, step) -> Update:
        """One training step on a global batch. Pure: the engine compiles it and donates `learned`.

        Args:
            learned: before the step.
            batch: a pytree of arrays whose leading axis is split over all devices.
            key: random key of this step.
            step: int32, the number of steps before this one.
        """

    def split(self, learned: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """`learned` as two dicts: the entries that prediction needs, and the other entries."""

    def readings(self, learned: dict[str, Any]) -> dict[str, Any]:
        """Scalars that are logged as they are, without averaging, such as learning rates."""

    def validate(self, learned: dict[str, Any], poll: Callable[[], None]) -> dict[str, dict[str, float]]:
        """Metrics after an epoch, by set of weights: "weights" (raw) and "average" (EMA).

        The last set is the one that prediction uses.

        Args:
            learned: after the epoch.
            poll: call it between batches; it raises `hooks.Preempted` if the run must end.
        """
