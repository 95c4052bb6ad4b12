"""Learning rates by epoch, equal to those of PyTorch's schedulers, and the momentum of the mean feature.

A table is float64 [epochs]: element e is the value used throughout epoch e, counted from 0. The
reference of long-tailed training (Tang et al., NeurIPS 2020) steps its scheduler at the *start* of an
epoch, so epoch e uses the scheduler's index e + 1, and index 0 is never used: the warm-up starts one
index later, milestone m applies from epoch m − 1, and the last epoch of a cosine has the final
rate. `per_step` turns a table into an optax schedule.
"""

import bisect
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np


def warmup_multistep(
    peak: float,
    *,
    epochs: int,
    milestones: Sequence[int],
    factor: float,
    warmup_epochs: int = 5,
    warmup_factor: float = 1 / 3,
) -> np.ndarray:
    """Learning rates that rise linearly and are multiplied by `factor` at milestones: float64 [epochs].

    Args:
        peak: learning rate after the warm-up.
        epochs: length of the table.
        milestones: scheduler indices (epochs counted from 1) of the drops, in ascending order.
        factor: factor of every drop.
        warmup_epochs: length of the warm-up; 0: none.
        warmup_factor: share of the peak at which the warm-up starts, at index 0.

    Raises:
        ValueError: no epochs, or milestones that are not in ascending order.
    """
    _check(epochs)
    if list(milestones) != sorted(milestones):
        raise ValueError(f"milestones {tuple(milestones)} must be in ascending order")

    def at(index):
        share = 1.0
        if index < warmup_epochs:
            done = index / warmup_epochs
            share = warmup_factor * (1 - done) + done
        return peak * share * factor ** bisect.bisect_right(milestones, index)

    return np.array([at(epoch + 1) for epoch in range(epochs)])


def recursive_cosine(peak: float, *, epochs: int, end: float = 0.0) -> np.ndarray:
    """Learning rates along half a cosine from the peak to `end`, reached in the last epoch: float64 [epochs].

    Computed by PyTorch's recursion from each rate to the next, which differs from the closed form
    by about 1e-12 of the rate.

    Raises:
        ValueError: no epochs.
    """
    _check(epochs)
    rates, rate = [], peak
    for index in range(1, epochs + 1):
        ratio = (1 + math.cos(math.pi * index / epochs)) / (1 + math.cos(math.pi * (index - 1) / epochs))
        rate = ratio * (rate - end) + end
        rates.append(rate)
    return np.array(rates)


def exponential(peak: float, *, epochs: int, factor: float) -> np.ndarray:
    """Learning rates that are multiplied by `factor` after every epoch, from the peak on: float64 [epochs].

    Raises:
        ValueError: no epochs.
    """
    _check(epochs)
    return peak * np.float64(factor) ** np.arange(epochs)


def moving_average_rates(learning_rates) -> np.ndarray:
    """Momentum mu of the mean feature by epoch, 1 − 0.1·min(50·rate, 1): learning rates [epochs] -> [epochs].

    mu is 0.9 while the learning rate is at least 0.02 and approaches 1 as the rate approaches 0, so that old
    features are forgotten more slowly. The reference does this on all data but CIFAR, where mu is always 0.9.
    """
    return 1 - (1 - 0.9) * np.minimum(np.asarray(learning_rates, np.float64) * 50, 1)


def per_step(table, steps_per_epoch: int) -> Callable:
    """An optax schedule: step -> the table's value in that step's epoch; later steps keep the last value.

    Raises:
        ValueError: no epochs, or fewer than 1 step in an epoch.
    """
    values = np.asarray(table, np.float64)
    _check(len(values))
    if steps_per_epoch < 1:
        raise ValueError(f"{steps_per_epoch} steps per epoch; there must be at least 1")

    def schedule(step):
        epoch = jnp.minimum(jnp.asarray(step) // steps_per_epoch, len(values) - 1)
        return jnp.asarray(values, jnp.result_type(float))[epoch]

    return schedule


def _check(epochs):
    if epochs < 1:
        raise ValueError(f"a schedule over {epochs} epochs; there must be at least 1")
