"""Class evidence from patches: every class looks where it recognises itself best.

Two ways to pool p patches. The paper's, `patch_logits`: every class weighs the patches by itself,
so that one patch may vouch for many classes, for a target and for its company. Ours,
`exclusive_logits`: every patch has one vote to divide, so that what explains the company is not
left to vouch for the target.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped

HALF = 0.6931471805599453  # −log of a probability of one half
LEAST = 1e-7  # probability that a patch which is all one class's is left to the others
SMALL = -12.0  # log of a probability x for which x and −log(1 − x) are one number in float32


@shaped("b p k -> b p k")
def patch_weights(attention):
    """Share of each patch in a class's evidence: [b, p, k] -> [b, p, k], summing to 1 over patches.

    In float32 or wider: a softmax over few patches saturates early in half precision.
    """
    attention = attention.astype(jnp.promote_types(attention.dtype, jnp.float32))
    return jax.nn.softmax(attention, axis=1)


@shaped("b p k, b p k -> b k")
def patch_logits(attention, scores):
    """Class evidence pooled over patches: two [b, p, k] -> [b, k].

    Each class weighs the patches by a softmax of its own attention logits, so that the pivot
    patch dominates (arXiv:2404.06287, section 3).
    """
    return (patch_weights(attention) * scores).sum(axis=1)


@shaped("b p k -> b k")
def pivot(attention):
    """Index of each class's pivot patch, the one of most attention: [b, p, k] -> int32 [b, k]."""
    return jnp.argmax(attention, axis=1).astype(jnp.int32)


@shaped("b p k -> b p k")
def shares(scores):
    """Log of each class's share of each patch: [b, p, k] -> [b, p, k], at most 0.

    A softmax over the classes and the background, whose score is 0: what one class has of a patch
    no other can have.
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    background = jnp.zeros_like(scores[..., :1])
    everything = jnp.concatenate([scores, background], axis=-1)
    return scores - jax.nn.logsumexp(everything, axis=-1, keepdims=True)


@shaped("b p k -> b k")
def exclusive_logits(scores):
    """Class evidence where patches vouch for one class only: [b, p, k] -> [b, k].

    Each patch is divided among the classes (`shares`), and a class is present where at least one
    patch is its own: the noisy or P_k = 1 − Π_p (1 − share_pk), given as its logit, which is
    log(exp(λ_k) − 1) with λ_k = −Σ_p log(1 − share_pk).
    """
    log_share = shares(scores)
    # Of shares so small that 1 − share is 1, −log(1 − share) is the share.
    small = log_share < SMALL
    log_evidence = jnp.where(small, log_share, jnp.log(-_log_complement(jnp.where(small, SMALL, log_share))))
    log_total = jax.nn.logsumexp(log_evidence, axis=1)
    # log(exp(λ) − 1) = λ + log(1 − exp(−λ)); for small λ it is log λ.
    small = log_total < SMALL
    total = jnp.exp(jnp.where(small, SMALL, log_total))
    return jnp.where(small, log_total, total + _log_complement(-total))


def _log_complement(x):
    """log(1 − exp(x)) for x < 0, where it is at least log(LEAST).

    By the form that is exact on either side of exp(x) = 1/2 (Mächler, "Accurately computing
    log(1 − exp(−|a|))", 2012). The form not taken gets a harmless argument: its gradient is
    multiplied by 0, and 0·∞ is not a number.
    """
    x = jnp.minimum(x, -LEAST)
    near = x > -HALF
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -HALF))),
        jnp.log1p(-jnp.exp(jnp.where(near, -HALF, x))),
    )


class Pooling(NamedTuple):
    """A way from patches to class evidence.

    logits: attention and scores, two [b, p, k] -> [b, k].
    focus: the same -> [b, p, k], whose softmax over patches says where a class finds its evidence.
    background: scores are relative to a background's, which cells of a map then judge too.
    """

    logits: Callable
    focus: Callable
    background: bool = False


# By the name that `config.patches.pooling` has.
POOLINGS = {
    "pivot": Pooling(patch_logits, lambda attention, scores: attention),
    "exclusive": Pooling(
        lambda attention, scores: exclusive_logits(scores),
        lambda attention, scores: shares(scores),
        background=True,
    ),
}
