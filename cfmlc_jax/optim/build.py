"""Names to optimisers and schedules, and those of the references: AdamW under one cycle, SGD with momentum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from cfmlc_jax.optim import one_cycle, schedules

# Parameters -> a tree of booleans, whether each is trained; None: all are.
Trainable = Callable[[Any], Any] | None


class Length(NamedTuple):
    """How long a training is: epochs, and steps in all."""

    epochs: int
    steps: int


class Optimizer(NamedTuple):
    """An optimiser by name.

    create: (config.optim, length, trainable) -> the transformation, its values in use in its state (`hyperparameters`).
    fields: of config.optim that it reads beside the common ones; sections with a point behind them.
    by_epoch: its learning rate is constant in an epoch (`epoch_rates`).
    """

    create: Callable[[Any, Length, Trainable], optax.GradientTransformation]
    fields: tuple[str, ...] = ()
    by_epoch: bool = False


class Schedule(NamedTuple):
    """A schedule of SGD by name.

    rates: (peak, epochs, config.optim.sgd) -> the learning rate in each epoch, float64 [epochs].
    fields: of config.optim.sgd that it reads.
    """

    rates: Callable[[float, int, Any], np.ndarray]
    fields: tuple[str, ...] = ()


def create(optim: Any, length: Length, trainable: Trainable = None) -> optax.GradientTransformation:
    """The optimiser that config.optim names, with its schedule.

    Args:
        optim: section of a configuration.
        length: of the training.
        trainable: which parameters are trained; the others are not decayed either.
    """
    return OPTIMIZERS[optim.name].create(optim, length, trainable)


def epoch_rates(optim: Any, epochs: int) -> np.ndarray:
    """SGD's learning rate in each epoch: float64 [epochs]."""
    return SCHEDULES[optim.sgd.schedule].rates(optim.learning_rate, epochs, optim.sgd)


def adamw_one_cycle(
    *,
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.2,
    weight_decay: float = 1e-4,
    trainable: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW whose learning rate and beta1 follow one cycle; decay on all parameters that are trained.

    Norms and biases are decayed too, as in the reference. The values in use at a step are in the
    state (`hyperparameters`).

    Args:
        max_lr: the peak of the learning rate.
        total_steps: length of the cycle.
        pct_start: share of the steps until the peak.
        weight_decay: per step and unit of learning rate.
        trainable: parameters -> a tree of booleans; the others are not decayed, and so stay as they
            are while their gradients are zero. None: all are trained.
    """
    # Functions would be taken for schedules.
    return optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=one_cycle.learning_rate(max_lr, total_steps=total_steps, pct_start=pct_start),
        b1=one_cycle.beta1(total_steps=total_steps, pct_start=pct_start),
        b2=0.999,
        eps=1e-8,
        weight_decay=weight_decay,
        mask=trainable,
    )


def sgd(
    *,
    learning_rate: Callable | float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    trainable: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """SGD as PyTorch's, v <- momentum·v + gradient + decay·w and then w <- w − rate·v.

    The rate scales the velocity and is not inside it: a drop of the schedule acts at once. All that is
    trained is decayed, norms and biases too, as in the reference of long-tailed training. The values in use at a step
    are in the state (`hyperparameters`).

    Args:
        learning_rate: a schedule of the step (`schedules.per_step`), or a number.
        momentum: share of the velocity that is kept.
        weight_decay: added to the gradient per unit of weight.
        trainable: as in `adamw_one_cycle`.
    """
    return optax.inject_hyperparams(_sgd, static_args="mask")(
        learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay, mask=trainable
    )


def _sgd(learning_rate, momentum, weight_decay, mask):
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask), optax.sgd(learning_rate, momentum=momentum)
    )


def hyperparameters(opt_state) -> dict:
    """Learning rate, and beta1 (AdamW) or momentum (SGD), that the last update used."""
    values = opt_state.hyperparams
    names = {"lr": "learning_rate", "beta1": "b1", "momentum": "momentum"}
    return {name: values[key] for name, key in names.items() if key in values}


def _create_adamw(optim, length, trainable):
    return adamw_one_cycle(
        max_lr=optim.learning_rate,
        total_steps=length.steps,
        pct_start=optim.pct_start,
        weight_decay=optim.weight_decay,
        trainable=trainable,
    )


def _create_sgd(optim, length, trainable):
    rates = epoch_rates(optim, length.epochs)
    return sgd(
        learning_rate=schedules.per_step(rates, length.steps // length.epochs),
        momentum=optim.sgd.momentum,
        weight_decay=optim.weight_decay,
        trainable=trainable,
    )


def _warmup_multistep(peak, epochs, sgd):
    return schedules.warmup_multistep(
        peak, epochs=epochs, milestones=sgd.milestones, factor=sgd.drop, warmup_epochs=sgd.warmup_epochs
    )


def _cosine(peak, epochs, sgd):
    return schedules.recursive_cosine(peak, epochs=epochs)


OPTIMIZERS = {
    "adamw_one_cycle": Optimizer(_create_adamw, ("pct_start",)),
    "sgd": Optimizer(_create_sgd, ("sgd.",), by_epoch=True),
}
SCHEDULES = {
    "warmup_multistep": Schedule(_warmup_multistep, ("warmup_epochs", "milestones", "drop")),
    "cosine": Schedule(_cosine),
}
