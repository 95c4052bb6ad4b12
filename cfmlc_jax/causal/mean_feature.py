"""Multi-head cosine logits, and their counterfactual along the mean feature of training.

After Tang et al., "Long-Tailed Classification by Keeping the Good and Removing the Bad Momentum
Causal Effect" (NeurIPS 2020, arXiv:2009.12991, sections 4.1 and 4.2). Features and weights are split
into heads, equal slices of d, and each slice is normalised separately. In einsum strings j counts heads
and i the features of one head.

All products use full float32: tau multiplies the error of a cosine, and devices that compute matrix
products in TF32 or bfloat16 by default would leave it three digits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.shapes import shaped

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def split_heads(x, num_heads: int):
    """Features split into equal slices, at least float32: [..., d] -> [..., K, d/K].

    Raises:
        InputError: the number of heads does not divide d.
    """
    d = x.shape[-1]
    if num_heads < 1 or d % num_heads:
        raise InputError(
            f"{d} features cannot be split into {num_heads} heads of equal size; "
            f"choose a num_heads that divides {d}"
        )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x.reshape(*x.shape[:-1], num_heads, d // num_heads)


@shaped("... d -> ... d")
def normalise(x, offset: float):
    """x / (‖x‖ + offset) along the last axis: [..., d] -> [..., d].

    Offset 0 gives unit vectors, gamma the causal norm of weights, and 1 the capsule norm. A zero vector
    stays zero, and with offset 0 its gradient is zero too (NaN in the reference).
    """
    squared = (x * x).sum(axis=-1, keepdims=True)
    # The root's slope at 0 is infinite, so its gradient would be 0 · ∞.
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

    The counterfactual is computed from the projection of the features on the mean feature; for unit
    features <x_j, e_j> is their cosine. It is zero while the mean feature is zero, before training.

    Args:
        features: pooled features.
        kernel: weights, one column per class.
        mean_feature: the `moving_sum` of training.
        num_heads: K.
        tau: scale of the logits, which are means over heads.
        weight_offset: added to the norms of weights (`normalise`).
        feature_offset: added to the norms of features.
        mean_offset: added to the norms of the mean feature.

    Raises:
        InputError: the number of heads does not divide d.
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
    """Cosine between features and mean feature in each head: [..., d], [d] -> [..., K].

    It is 0 if either vector is zero.

    Raises:
        InputError: the number of heads does not divide d.
    """
    x = normalise(split_heads(features, num_heads), 0.0)
    e = normalise(split_heads(mean_feature, num_heads), 0.0)
    return _einsum("...ji,ji->...j", x, e)


@shaped("d, ... d, *, ... -> d")
def moving_sum(previous, features, mu, counted=None):
    """The mean feature after a batch, mu·previous + mean of the batch: [d], [..., d] -> float32 [d].

    This is a discounted sum, not a mean, and up to 1/(1 − mu) times as long: only its direction is used.
    Under `jit` with a batch split over devices, the mean is over the whole batch. If no row counts, the
    previous value is unchanged. No gradient flows through the result.

    Args:
        previous: the value before; zeros at the start.
        features: features of the batch.
        mu: share of the previous value that is kept; a number or a traced scalar.
        counted: [...] True for the rows that count; None: all rows.
    """
    rows = features.astype(jnp.float32).reshape(-1, features.shape[-1])
    counted = jnp.ones(rows.shape[0], bool) if counted is None else counted.reshape(-1)
    number = counted.sum()
    mean = jnp.where(counted[:, None], rows, 0).sum(axis=0) / jnp.maximum(number, 1)
    following = jnp.where(number > 0, mu * previous + mean, previous)
    return jax.lax.stop_gradient(following.astype(jnp.float32))


def rule_of_thumb_alpha(cosines) -> float:
    """The alpha that makes alpha·cos equal 1 on average over images and heads: [...] -> float.

    The reference advises it if there is no validation split to choose alpha on.

    Args:
        cosines: cosines between images' features and the mean feature (`cosines`).

    Raises:
        ValueError: the mean cosine is not positive, so that no alpha exists.
    """
    mean = float(np.asarray(cosines, np.float64).mean())
    if not mean > 0:
        raise ValueError(
            f"the mean cosine between features and mean feature is {mean:g}, so no alpha makes "
            "alpha·cos 1 on average; check that the mean feature comes from training"
        )
    return 1 / mean
