"""Exponential moving average (EMA) of all variables that evaluation uses."""

import jax


def update(average, current, decay: float):
    """The next average, decay·average + (1 − decay)·current: two trees -> a tree.

    The caller averages parameters *and* batch statistics, as the reference does. There is no
    warm-up, so the first averages are mostly the initial weights.
    """
    return jax.tree.map(lambda a, c: decay * a + (1 - decay) * c, average, current)
