"""The optimiser of the reference: AdamW under a one-cycle schedule."""

import optax

from cfmlc_jax.optim import one_cycle


def adamw_one_cycle(
    *, max_lr: float, total_steps: int, pct_start: float = 0.2, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """AdamW whose learning rate and beta1 follow one cycle; decay on all parameters.

    Norms and biases are decayed too, as in the reference. The values in use at a step are in the
    state (`hyperparameters`).
    """
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=one_cycle.learning_rate(max_lr, total_steps=total_steps, pct_start=pct_start),
        b1=one_cycle.beta1(total_steps=total_steps, pct_start=pct_start),
        b2=0.999,
        eps=1e-8,
        weight_decay=weight_decay,
    )


def hyperparameters(opt_state) -> dict:
    """Learning rate and beta1 that the last update used."""
    return {"lr": opt_state.hyperparams["learning_rate"], "beta1": opt_state.hyperparams["b1"]}
