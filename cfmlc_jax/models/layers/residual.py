"""The end of residual blocks: the sum with the shortcut, and stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_jvp
def add_relu(x, y):
    """max(x + y, 0), the end of a residual block: two [...] -> [...].

    It is written as max(x, −y) + y, with the sum last: XLA:CPU recomputes a maximum wherever it
    is used, and with it the whole chain of blocks before it, but stores a sum that is used twice.
    Compilers for other platforms fuse either form into one loop, so that this form serves all.
    """
    return jnp.maximum(x, -y) + y


@add_relu.defjvp
def _add_relu_jvp(primals, tangents):
    result = add_relu(*primals)
    x, y = tangents
    return result, jnp.where(result > 0, x + y, 0)


class DropPath(nn.Module):
    """Stochastic depth: in training a view's branch is 0 with probability `rate`, else scaled by 1/(1 − rate).

    [b, …] -> [b, …]. Uses the random stream "dropout" (Huang et al., ECCV 2016).
    """

    rate: float

    @nn.compact
    def __call__(self, x, *, train: bool):
        all_but_views = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=all_but_views)(x, deterministic=not train)
