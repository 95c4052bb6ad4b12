"""Multi-head cosine logits, the mean feature that momentum drifts along, and what remains without it.

After Tang et al., "Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum
Causal Effect" (NeurIPS 2020, arXiv:2009.12991, sections 4.1 and 4.2). Features and weights are cut
into heads, equal slices of d, and each is normalised by itself. In einsum strings j are heads and i
the features of one head.

Every product is of full float32: a cosine's error is multiplied by tau, and devices that shorten
matrix products to TF32 or bfloat16 by default would leave it three digits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.shapes import shaped

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def split_heads(x, num_heads: int):
    """Equal slices of features, at least float32: [..., d] -> [..., K, d/K].

    Raises:
        InputError: heads that do not divide the features.
    """
    d = x.shape[-1]
    if num_heads < 1 or d % num_heads:
        raise InputError(
            f"{d} features cannot be cut into {num_heads} heads of equal size; "
            f"choose a num_heads that divides {d}"
        )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x.reshape(*x.shape[:-1], num_heads, d // num_heads)


@shaped("... d -> ... d")
def normalise(x, offset: float):
    """x / (‖x‖ + offset) along the last axis: [..., d] -> [..., d].

    An offset of 0 gives unit vectors, gamma the causal norm of weights, and 1 the capsule norm.
    Of a zero vector it is zero, and with offset 0 its gradient too (the reference: NaN).
    """
    squared = (x * x).sum(axis=-1, keepdims=True)
    # The root's slope at 0 is infinite, and 0 · ∞ would be the gradient.
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0) + offset
    return jnp.where(length > 0, x / jnp.where(length > 0, length, 1), 0)


@shaped("... d, d k, d -> ... k, ... k")
def logits(
    features,
    kernel,
    mean_feature,
    *,
    num_heads: int,
    tau: float,
    weight_offset: float,
    feature_offset: float = 0.0,
    mean_offset: float = 0.0,
):
    """Factual and counterfactual logits: [..., d], [d, k], [d] -> two [..., k].

    With x, w and e the normalised slices of features, weights and mean feature, class c has

        factual         y_c  = tau/K · Σ_j <x_j, w_cj>
        counterfactual  y0_c = tau/K · Σ_j <x_j, e_j> · <e_j, w_cj>

    The counterfactual sees only that part of the image which lies along the mean feature; for unit
    features <x_j, e_j> is their cosine. It is zero where the mean feature is zero, before training.

    Args:
        features: pooled features.
        kernel: weights, a column for each class.
        mean_feature: `moving_sum` of training.
        num_heads: K.
        tau: factor of the sum of the heads' mean cosines.
        weight_offset: added to norms of weights (`normalise`).
        feature_offset: added to norms of features.
        mean_offset: added to norms of the mean feature.

    Raises:
        InputError: heads that do not divide the features.
    """
    x = normalise(split_heads(features, num_heads), feature_offset)
    w = normalise(split_heads(kernel.T, num_heads), weight_offset)
    e = normalise(split_heads(mean_feature, num_heads), mean_offset)
    factual = _einsum("...ji,kji->...k", x, w)
    along = _einsum("...ji,ji->...j", x, e)
    counterfactual = _einsum("...j,jk->...k", along, _einsum("ji,kji->jk", e, w))
    scale = tau / num_heads
    return scale * factual, scale * counterfactual


@shaped("... d, d -> ... _")
def cosines(features, mean_feature, num_heads: int):
    """Cosine of each head's features with the mean feature's: [..., d], [d] -> [..., K].

    0 for a zero vector on either side.

    Raises:
        InputError: heads that do not divide the features.
    """
    x = normalise(split_heads(features, num_heads), 0.0)
    e = normalise(split_heads(mean_feature, num_heads), 0.0)
    return _einsum("...ji,ji->...j", x, e)


@shaped("d, ... d, *, ... -> d")
def moving_sum(previous, features, mu, counted=None):
    """The mean feature after a batch, mu·previous + mean of the batch: [d], [..., d] -> float32 [d].

    A discounted sum and not a mean, up to 1/(1 − mu) times as long: only its direction is used.
    Under `jit` with a batch split over devices the mean is over all of it. Where no row counts, the
    previous value is left as it is. No gradient flows through it.

    Args:
        previous: the value before; zeros at the start.
        features: of the batch.
        mu: share of the previous value that is kept; a number or a traced scalar.
        counted: [...] True for the rows that count; None: all.
    """
    rows = features.astype(jnp.float32).reshape(-1, features.shape[-1])
    counted = jnp.ones(rows.shape[0], bool) if counted is None else counted.reshape(-1)
    number = counted.sum()
    mean = jnp.where(counted[:, None], rows, 0).sum(axis=0) / jnp.maximum(number, 1)
    following = jnp.where(number > 0, mu * previous + mean, previous)
    return jax.lax.stop_gradient(following.astype(jnp.float32))


def rule_of_thumb_alpha(cosines) -> float:
    """The alpha for which alpha·cos is 1 on average over images and heads.

    The reference's advice where there is no validation split to choose alpha on.

    Args:
        cosines: [...] of some images with the mean feature (`cosines`).

    Raises:
        ValueError: a mean cosine that is not positive, so that no alpha does it.
    """
    mean = float(np.asarray(cosines, np.float64).mean())
    if not mean > 0:
        raise ValueError(
            f"the mean cosine of the features with the mean feature is {mean:g}, so no alpha makes "
            "alpha·cos 1 on average; is the mean feature that of training?"
        )
    return 1 / mean
