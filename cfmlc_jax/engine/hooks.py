"""What watches over a run: values that are not finite, early stopping, being asked to end."""

import dataclasses
import signal
from collections import deque
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from cfmlc_jax.errors import RunError


class NonFiniteWatch:
    """Stops a run at the first step whose values are not finite.

    A step is looked at when the next one is already on its way, so that the devices never wait for
    the host.

    Args:
        names: of the values that a step checks, by position (`step.TrainStep.watched`).
    """

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._pending: deque = deque()

    def add(self, step: int, first_bad) -> None:
        """Take step's result, and check the one before.

        Raises:
            RunError: the earlier step was not finite.
        """
        self._pending.append((step, first_bad))
        while len(self._pending) > 1:
            self._check(*self._pending.popleft())

    def flush(self) -> None:
        """Check what is pending: before a save, nothing may be in doubt.

        Raises:
            RunError: a step was not finite.
        """
        while self._pending:
            self._check(*self._pending.popleft())

    def _check(self, step, first_bad):
        position = int(first_bad)
        if position >= 0:
            raise RunError(
                f"step {step}: {self._names[position]} is not finite; the last checkpoint is intact; "
                "lower optim.learning_rate, use model.dtype float32, or look at that layer"
            )


@dataclasses.dataclass
class EarlyStop:
    """Ends a run that no longer improves, by MLC-PAT's rule.

    patience: epochs; None: it never ends a run.
    best: by set of weights ("weights", "average"), the epoch and value of the best score.
    """

    patience: int | None
    best: dict[str, list]

    def update(self, epoch: int, scores: dict[str, float]) -> bool:
        """Note an epoch's scores; whether to stop.

        To stop, no set's score may have improved for `patience` epochs, and that of the last set, which
        predicts, must be below its best.
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
    """The run was asked to end, and what it has done is saved."""


class Preemption:
    """Whether the run has been asked to end (SIGTERM); a context that listens for it.

    With several processes jax.distributed listens, and all of them agree on the question at which to end: so
    all must ask equally often.
    """

    def __init__(self):
        self._asked = False
        self._questions = 0

    def __enter__(self):
        if jax.process_count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_):
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self) -> bool:
        """Whether to save and end now."""
        if jax.process_count() > 1:
            self._questions += 1
            return multihost_utils.reached_preemption_sync_point(self._questions)
        return self._asked

    def end(self, done: str) -> None:
        """Raise if it has, where nothing is left to save.

        Args:
            done: how far the run is.

        Raises:
            Preempted: it has been asked to end.
        """
        if self.reached():
            raise Preempted(f"asked to end; {done}")

    def _on_signal(self, *_):
        self._asked = True


def host_values(tally) -> dict[str, float]:
    """Means of the values that a state has tallied since the last log."""
    tally = {name: float(np.asarray(value)) for name, value in tally.items()}
    steps = tally.pop("steps")
    return {name: value / steps for name, value in tally.items()}
