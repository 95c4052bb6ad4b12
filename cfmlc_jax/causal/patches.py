"""Class evidence pooled over patches, each class from the patches that resemble it most.

There are two ways to pool p patches. In the paper's, `patch_logits`, every class weights the patches
independently, so that one patch may be evidence for many classes: for a target and for its context. In
ours, `exclusive_logits`, every patch has one vote to divide among the classes, so that a patch that
shows the context is no evidence for the target.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped

HALF = 0.6931471805599453  # −log(1/2)
LEAST = 1e-7  # least value of 1 − share, so that a patch that is all one class's has finite evidence
SMALL = -12.0  # log of a probability x so small that x and −log(1 − x) are the same number in float32


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

    Each class weights the patches by a softmax of its own attention logits, so that its pivot
    patch dominates (arXiv:2404.06287, section 3).
    """
    return (patch_weights(attention) * scores).sum(axis=1)


@shaped("b p k -> b k")
def pivot(attention):
    """Index of each class's pivot patch, which has the most attention: [b, p, k] -> int32 [b, k]."""
    return jnp.argmax(attention, axis=1).astype(jnp.int32)


@shaped("b p k -> b p k")
def shares(scores):
    """Log of each class's share of each patch: [b, p, k] -> [b, p, k], at most 0.

    A log-softmax over the classes and the background, whose score is 0: the share of one class is lost
    to all others.
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    background = jnp.zeros_like(scores[..., :1])
    everything = jnp.concatenate([scores, background], axis=-1)
    return scores - jax.nn.logsumexp(everything, axis=-1, keepdims=True)


@shaped("b p k -> b k")
def exclusive_logits(scores):
    """Class evidence from patches that each belong to one class: [b, p, k] -> [b, k].

    Each patch is divided among the classes (`shares`), and a class is present if at least one
    patch belongs to it: the noisy or P_k = 1 − Π_p (1 − share_pk). The result is its logit,
    log(exp(λ_k) − 1) with λ_k = −Σ_p log(1 − share_pk).
    """
    log_share = shares(scores)
    # For a share so small that 1 − share rounds to 1, −log(1 − share) is the share itself.
    small = log_share < SMALL
    log_evidence = jnp.where(small, log_share, jnp.log(-_log_complement(jnp.where(small, SMALL, log_share))))
    log_total = jax.nn.logsumexp(log_evidence, axis=1)
    # log(exp(λ) − 1) = λ + log(1 − exp(−λ)); for small λ it is log λ.
    small = log_total < SMALL
    total = jnp.exp(jnp.where(small, SMALL, log_total))
    return jnp.where(small, log_total, total + _log_complement(-total))


def _log_complement(x):
    """log(1 − exp(x)) for x < 0, at least log(LEAST).

    There is one accurate formula on each side of exp(x) = 1/2 (Mächler, "Accurately computing
    log(1 − exp(−|a|))", 2012). The formula that is not used is evaluated at a harmless argument, because its
    gradient is multiplied by 0, and 0·∞ is NaN.
    """
    x = jnp.minimum(x, -LEAST)
    near = x > -HALF
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, x, -HALF))),
        jnp.log1p(-jnp.exp(jnp.where(near, -HALF, x))),
    )


class Pooling(NamedTuple):
    """A way to pool patches into class evidence.

    logits: attention and scores, two [b, p, k] -> [b, k].
    focus: attention and scores -> [b, p, k], whose softmax over patches is each patch's share in the evidence.
    background: scores are relative to a background score, for which cells of a map get a layer of its own.
    weight: of the evidence in the combined prediction; that of the whole image has the rest.
    """

    logits: Callable
    focus: Callable
    background: bool = False
    weight: float = 0.5


# Poolings by their name in `config.patches.pooling`.
POOLINGS = {
    "pivot": Pooling(patch_logits, lambda attention, scores: attention),
    "exclusive": Pooling(
        lambda attention, scores: exclusive_logits(scores),
        lambda attention, scores: shares(scores),
        background=True,
    ),
}
