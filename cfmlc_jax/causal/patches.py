"""Class evidence from patches: every class looks where it recognises itself best."""

import jax
import jax.numpy as jnp


def patch_weights(attention):
    """Share of each patch in a class's evidence: [b, p, k] -> [b, p, k], summing to 1 over patches.

    In float32 or wider: a softmax over few patches saturates early in half precision.
    """
    attention = attention.astype(jnp.promote_types(attention.dtype, jnp.float32))
    return jax.nn.softmax(attention, axis=1)


def patch_logits(attention, scores):
    """Class evidence pooled over patches: two [b, p, k] -> [b, k].

    Each class weighs the patches by a softmax of its own attention logits, so that the pivot
    patch dominates (arXiv:2404.06287, section 3).
    """
    return (patch_weights(attention) * scores).sum(axis=1)


def pivot(attention):
    """Index of each class's pivot patch, the one of most attention: [b, p, k] -> int32 [b, k]."""
    return jnp.argmax(attention, axis=1).astype(jnp.int32)
