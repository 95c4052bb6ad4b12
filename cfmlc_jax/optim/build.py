"""The tables of optimisers and schedules by name: AdamW with one cycle, SGD with momentum, Adadelta."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

from cfmlc_jax.optim import one_cycle, schedules

# Parameters -> a tree of booleans, True for a parameter that is trained; None: all are trained.
TrainableMask = Callable[[Any], Any] | None


class Length(NamedTuple):
    """Length of a training: epochs, and steps in total."""

    epochs: int
    steps: int


class Optimizer(NamedTuple):
    """An optimiser by name.

    create: (config.optim, length, trainable_mask) -> a transformation whose state has its current `hyperparameters`.
    fields: fields of config.optim that it reads besides the common ones; sections end with a dot.
    by_epoch: its learning rate has a schedule by epoch, one of `SCHEDULES` (`epoch_rates`).
    """

    create: Callable[[Any, Length, TrainableMask], optax.GradientTransformation]
    fields: tuple[str, ...] = ()
    by_epoch: bool = False


class Schedule(NamedTuple):
    """A learning-rate schedule of SGD by name.

    rates: (peak, epochs, config.optim.sgd) -> the learning rate in each epoch, float64 [epochs].
    fields: fields of config.optim.sgd that it reads.
    """

    rates: Callable[[float, int, Any], np.ndarray]
    fields: tuple[str, ...] = ()


def create(optim: Any, length: Length, trainable_mask: TrainableMask = None) -> optax.GradientTransformation:
    """The optimiser named by config.optim, with its schedule.

    Args:
        optim: section `optim` of the configuration.
        length: length of the training.
        trainable_mask: which parameters are trained; weight decay skips the others.
    """
    optimizer = OPTIMIZERS[optim.name].create(optim, length, trainable_mask)
    return clipped(optimizer, optim.clip_norm) if optim.clip_norm else optimizer


def clipped(optimizer: optax.GradientTransformation, norm: float) -> optax.GradientTransformation:
    """The optimiser, with gradients of a larger global norm scaled down to this norm. Its state is unchanged.

    Args:
        optimizer: to give the gradients to.
        norm: of all gradients together; above 0.
    """
    clip = optax.clip_by_global_norm(norm)

    def update(gradient, state, params=None):
        gradient, _ = clip.update(gradient, clip.init(params))
        return optimizer.update(gradient, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def epoch_rates(optim: Any, epochs: int) -> np.ndarray:
    """SGD's learning rate in each epoch: float64 [epochs]."""
    return SCHEDULES[optim.sgd.schedule].rates(optim.learning_rate, epochs, optim.sgd)


def adamw_one_cycle(
    *,
    max_lr: float,
    total_steps: int,
    pct_start: float = 0.2,
    weight_decay: float = 1e-4,
    trainable_mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """AdamW whose learning rate and beta1 follow one cycle, with weight decay on all trained parameters.

    Norms and biases are decayed too, as in the reference. The state has the values of the current step
    (`hyperparameters`).

    Args:
        max_lr: peak of the learning rate.
        total_steps: length of the cycle.
        pct_start: share of the steps before the peak.
        weight_decay: per step and unit of learning rate.
        trainable_mask: parameters -> a tree of booleans. Parameters marked False are not decayed, so they
            do not change as long as their gradients are zero. None: all are trained.
    """
    # Without `static_args` optax would call the mask as a schedule.
    return optax.inject_hyperparams(optax.adamw, static_args="mask")(
        learning_rate=one_cycle.learning_rate(max_lr, total_steps=total_steps, pct_start=pct_start),
        b1=one_cycle.beta1(total_steps=total_steps, pct_start=pct_start),
        b2=0.999,
        eps=1e-8,
        weight_decay=weight_decay,
        mask=trainable_mask,
    )


def sgd(
    *,
    learning_rate: Callable | float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    trainable_mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """SGD as in PyTorch: v <- momentum·v + gradient + decay·w, then w <- w − rate·v.

    The learning rate multiplies the velocity and is not part of it, so that a drop in the schedule acts at
    once. All trained parameters are decayed, norms and biases too, as in the reference of long-tailed training.
    The state has the values of the current step (`hyperparameters`).

    Args:
        learning_rate: a schedule by step (`schedules.per_step`), or a number.
        momentum: share of the velocity that is kept.
        weight_decay: factor of the weights that are added to the gradient.
        trainable_mask: as in `adamw_one_cycle`.
    """
    return optax.inject_hyperparams(_sgd, static_args="mask")(
        learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay, mask=trainable_mask
    )


def _sgd(learning_rate, momentum, weight_decay, mask):
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask), optax.sgd(learning_rate, momentum=momentum)
    )


def adadelta(
    *,
    learning_rate: Callable | float,
    rho: float = 0.9,
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    trainable_mask: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Adadelta as in PyTorch: each step is about as long as the steps before it (Zeiler, arXiv:1212.5701).

    The state has the values of the current step (`hyperparameters`).

    Args:
        learning_rate: factor of the steps; a schedule by step (`schedules.per_step`), or a number.
        rho: share of the mean squared gradient, and of the mean squared step, that is kept.
        epsilon: added to both means; also decides the length of the first step.
        weight_decay: factor of the weights that are added to the gradient.
        trainable_mask: as in `adamw_one_cycle`.
    """
    return optax.inject_hyperparams(optax.adadelta, static_args="weight_decay_mask")(
        learning_rate=learning_rate,
        rho=rho,
        eps=epsilon,
        weight_decay=weight_decay,
        weight_decay_mask=trainable_mask,
    )


def hyperparameters(opt_state) -> dict:
    """Learning rate, and beta1 (AdamW) or momentum (SGD), of the last update: {"lr", "beta1" or "momentum"}."""
    values = opt_state.hyperparams
    names = {"lr": "learning_rate", "beta1": "b1", "momentum": "momentum"}
    return {name: values[key] for name, key in names.items() if key in values}


def _create_adamw(optim, length, trainable_mask):
    return adamw_one_cycle(
        max_lr=optim.learning_rate,
        total_steps=length.steps,
        pct_start=optim.pct_start,
        weight_decay=optim.weight_decay,
        trainable_mask=trainable_mask,
    )


def _create_sgd(optim, length, trainable_mask):
    rates = epoch_rates(optim, length.epochs)
    return sgd(
        learning_rate=schedules.per_step(rates, length.steps // length.epochs),
        momentum=optim.sgd.momentum,
        weight_decay=optim.weight_decay,
        trainable_mask=trainable_mask,
    )


def _create_adadelta(optim, length, trainable_mask):
    fields = optim.adadelta
    rates = schedules.exponential(optim.learning_rate, epochs=length.epochs, factor=fields.drop)
    return adadelta(
        learning_rate=schedules.per_step(rates, length.steps // length.epochs),
        rho=fields.rho,
        epsilon=fields.epsilon,
        weight_decay=optim.weight_decay,
        trainable_mask=trainable_mask,
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
    "adadelta": Optimizer(_create_adadelta, ("adadelta.",)),
}
SCHEDULES = {
    "warmup_multistep": Schedule(_warmup_multistep, ("warmup_epochs", "milestones", "drop")),
    "cosine": Schedule(_cosine),
}
