"""Reasons for a run to end early: non-finite values, no improvement, a request (SIGTERM)."""

import dataclasses
import signal
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np

from cfmlc_jax.ending import common_end
from cfmlc_jax.errors import RunError


class NonFiniteWatch:
    """Raises an error at the first step with non-finite values.

    The result of a step is read after the next step was started, so that the devices never wait for the
    host.

    Args:
        names: of the arrays that a step checks, by position (`step.TrainStep.watched`).
    """

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._pending: deque = deque()

    def add(self, step: int, first_bad) -> None:
        """Keep this step's result for later, and check the one before.

        Raises:
            RunError: the earlier step had non-finite values.
        """
        self._pending.append((step, first_bad))
        while len(self._pending) > 1:
            self._check(*self._pending.popleft())

    def flush(self) -> None:
        """Check all steps so far. Called before a save: a checkpoint must not hold non-finite values.

        Raises:
            RunError: a step had non-finite values.
        """
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, step, first_bad):
        position = int(first_bad)
        if position >= 0:
            raise RunError(
                f"step {step}: {self._names[position]} is not finite; what was saved is intact; "
                "lower optim.learning_rate, use model.dtype float32, or inspect that layer"
            )


@dataclasses.dataclass
class EarlyStop:
    """Decides whether a run has stopped improving, by MLC-PAT's rule.

    patience: number of epochs without improvement; None: never stop early.
    best: [epoch, score] of the best validation, by set of weights ("weights", "average").
    """

    patience: int | None
    best: dict[str, list]

    def update(self, epoch: int, scores: dict[str, float]) -> bool:
        """Record the scores of an epoch by set of weights; return whether to stop.

        Training stops if neither set has improved for `patience` epochs and the last set, which prediction
        uses, is now below its best.
        """
        for name, value in scores.items():
            if name not in self.best or value > self.best[name][1]:
                self.best[name] = [epoch, value]
        if self.patience is None:
            return False
        stale = all(epoch - best[0] >= self.patience for best in self.best.values())
        last = [*scores][-1]
        return stale and scores[last] < self.best[last][1]


class Preempted(Exception):
    """The run was asked to end (SIGTERM), and its progress is saved."""


class Preemption:
    """A context that notices SIGTERM, the request that a run end.

    With several processes `ending` catches the signal all the time, and the processes agree on the call of
    `requested` at which all of them end. So every process must call it equally often. A single process catches it in
    the context, and ends at once outside of it (`cli.end_at_interrupt`).
    """

    _signalled = False  # of the class: a request after the last call of a stage ends the next stage

    def __enter__(self):
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Preempted):
            Preemption._signalled = False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self) -> bool:
        """Whether the run must save and end now."""
        if jax.process_count() > 1:
            return common_end.reached()
        return self._signalled

    def raise_if_requested(self, progress: str) -> None:
        """Raise if the run must end. Call it only where nothing is left to save.

        Args:
            progress: how far the run is, for the message.

        Raises:
            Preempted: the run was asked to end.
        """
        if self.requested():
            raise Preempted(f"asked to end; {progress}")

    def _on_signal(self, *_):
        Preemption._signalled = True


def mean_values(tally) -> dict[str, float]:
    """Means of the values since the last log, from the tally of a state."""
    tally = {name: float(np.asarray(value)) for name, value in tally.items()}
    steps = tally.pop("steps")
    return {name: value / steps for name, value in tally.items()}
