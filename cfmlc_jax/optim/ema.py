"""Exponential moving average of everything a model evaluates with."""

import jax


def update(average, current, decay: float):
    """decay·average + (1 − decay)·current, leaf by leaf.

    The caller averages parameters *and* batch statistics, as the reference does; there is no
    warm-up, so the first averages are mostly the initial weights.
    """
    return jax.tree.map(lambda a, c: decay * a + (1 - decay) * c, average, current)
