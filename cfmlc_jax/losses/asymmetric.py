"""The asymmetric loss for multi-label images, per entry and in float32; the caller reduces."""

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped


@shaped("b k, b k -> b k")
def asymmetric_loss(
    logits,
    labels,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    weight_gradient: bool = False,
):
    """Asymmetric loss (ASL) of every entry (image, class): two [b, k] -> [b, k].

    With p = sigmoid(x) and the shifted p_neg = min(1 − p + clip, 1), the loss of an entry is
    −(1 − p)^gamma_pos · log p if the label is 1 and −(1 − p_neg)^gamma_neg · log p_neg if it is 0:
    easy negatives count little, those with p below the clip not at all (Ridnik et al.,
    "Asymmetric Loss For Multi-Label Classification", ICCV 2021).

    Computed in float32 or wider: in float16 eps would be 0 and a logit below −17 would give NaN.

    Args:
        logits: before the sigmoid.
        labels: 1 where the class is present, else 0.
        gamma_neg: focusing exponent of negatives.
        gamma_pos: focusing exponent of positives; the reference trains with 0.
        clip: probability below which a negative has no loss.
        eps: least argument of the logarithms.
        weight_gradient: whether gradients flow through the focusing weight; in the reference they do not.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    labels = labels.astype(dtype)
    logits = logits.astype(dtype)
    p_pos = jax.nn.sigmoid(logits)
    # Not 1 − p_pos, which has lost all its digits at a logit of 15.
    p_neg = jnp.minimum(jax.nn.sigmoid(-logits) + clip, 1)
    log_likelihood = labels * jnp.log(jnp.maximum(p_pos, eps)) + (1 - labels) * jnp.log(
        jnp.maximum(p_neg, eps)
    )
    weight = labels * _focus(p_pos, gamma_pos) + (1 - labels) * _focus(p_neg, gamma_neg)
    if not weight_gradient:
        weight = jax.lax.stop_gradient(weight)
    return -weight * log_likelihood


def _focus(p, gamma):
    """(1 − p)^gamma; for gamma 0 a true constant, because the power's gradient at p = 1 would be 0·∞."""
    return (1 - p) ** gamma if gamma else jnp.ones_like(p)
