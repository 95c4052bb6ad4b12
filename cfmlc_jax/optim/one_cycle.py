"""PyTorch's one-cycle schedule (OneCycleLR, cosine, two phases) for learning rate and momentum.

optax's schedule of that name differs by up to 9 % of the peak and does not change the momentum,
whereas PyTorch's moves beta1 in the opposite direction to the learning rate by default.
"""

from collections.abc import Callable

import jax.numpy as jnp


def one_cycle(start, peak, end, *, total_steps: int, pct_start: float) -> Callable:
    """Schedule start -> peak -> end along two half cosines, a function from step to value.

    The peak is at step ``pct_start·total_steps − 1``, the end at step ``total_steps − 1``. Later
    steps keep the end value (PyTorch raises an error there).

    Raises:
        ValueError: fewer than 1 step, or a pct_start outside [0, 1].
    """
    if total_steps < 1 or not 0 <= pct_start <= 1:
        raise ValueError(
            f"one_cycle over {total_steps} steps with pct_start {pct_start}; "
            "there must be at least 1 step, and pct_start must be in [0, 1]"
        )
    peak_step, last_step = pct_start * total_steps - 1, total_steps - 1

    def schedule(step):
        step = jnp.minimum(jnp.asarray(step, jnp.result_type(float)), last_step)
        # A phase of length 0 contains no step, but `where` evaluates both branches.
        before_peak = (peak_step - step) / peak_step if peak_step > 0 else jnp.zeros_like(step)
        before_end = (
            (last_step - step) / (last_step - peak_step) if last_step > peak_step else jnp.zeros_like(step)
        )
        return jnp.where(step <= peak_step, _anneal(start, peak, before_peak), _anneal(peak, end, before_end))

    return schedule


def learning_rate(max_lr, *, total_steps, pct_start=0.2, div_factor=25.0, final_div_factor=1e4) -> Callable:
    """Learning rate by step: max_lr/div -> max_lr -> max_lr/(div·final_div)."""
    start = max_lr / div_factor
    return one_cycle(start, max_lr, start / final_div_factor, total_steps=total_steps, pct_start=pct_start)


def beta1(*, total_steps, pct_start=0.2, base=0.85, maximum=0.95) -> Callable:
    """Adam's beta1 by step: maximum -> base at the peak of the learning rate -> maximum."""
    return one_cycle(maximum, base, maximum, total_steps=total_steps, pct_start=pct_start)


def _anneal(start, end, remaining):
    """Value on the half cosine from start (remaining 1) to end (remaining 0).

    Computed as start·sin² + end·cos² of half the angle: equal to the usual (1 + cos)/2 but without
    cancellation, so that learning rates of 4e-6 of the peak stay exact in float32.
    """
    angle = jnp.pi / 2 * remaining
    return start * jnp.sin(angle) ** 2 + end * jnp.cos(angle) ** 2
