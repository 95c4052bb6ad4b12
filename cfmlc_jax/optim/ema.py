"""Exponential moving average (EMA) of all variables that evaluation uses."""

import jax

MOSTLY = 0.5  # share of the initial weights in their average from which a run says so


def update(average, current, decay: float):
    """The next average, decay·average + (1 − decay)·current: two trees -> a tree.

    The caller averages parameters *and* batch statistics, as the reference does. There is no
    warm-up, so the first averages are mostly the initial weights.
    """
    return jax.tree.map(lambda a, c: decay * a + (1 - decay) * c, average, current)


def slowness(decay: float, steps: int) -> str:
    """A line about an average that is still mostly the initial weights after all steps; else empty.

    Args:
        decay: of the averaged weights, at each step.
        steps: of the training.
    """
    share = decay**steps
    if share < MOSTLY:
        return ""
    return (
        f"few steps: after {steps} the averaged weights, which predict, would still be {share:.0%} the initial ones; set "
        f"config.optim.ema_decay to {1 - 5 / max(steps, 10):.2g}, say"
    )
