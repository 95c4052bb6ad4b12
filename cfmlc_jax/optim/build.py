"""The optimiser of the reference: AdamW under a one-cycle schedule."""

from collections.abc import Callable
from typing import Any

import optax

from cfmlc_jax.optim import one_cycle


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


def hyperparameters(opt_state) -> dict:
    """Learning rate and beta1 that the last update used."""
    return {"lr": opt_state.hyperparams["learning_rate"], "beta1": opt_state.hyperparams["b1"]}
