"""What a branch that learns from another one minimises, per entry and in float32; the caller reduces."""

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped


@shaped("b k, b k -> b k")
def distillation(logits, teacher):
    """Binary cross-entropy of every entry (image, class) against the teacher's probability: two [b, k] -> [b, k].

    No gradient flows to the teacher (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; temperature 1).

    Args:
        logits: of the branch that learns, before the sigmoid.
        teacher: logits of the branch that it learns from.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits = logits.astype(dtype)
    probability = jax.lax.stop_gradient(jax.nn.sigmoid(teacher.astype(dtype)))
    return jax.nn.softplus(logits) - probability * logits
