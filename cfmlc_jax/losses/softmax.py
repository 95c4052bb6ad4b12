"""Losses of single-label images, through a softmax, per image and in float32; the caller reduces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfmlc_jax.errors import InputError
from cfmlc_jax.shapes import shaped


@shaped("b k, b k -> b")
def cross_entropy(logits, labels):
    """Softmax cross-entropy of every image: two [b, k] -> [b].

    float32 or wider whatever comes in.

    Args:
        logits: before the softmax.
        labels: 1 at the image's class, else 0.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return optax.softmax_cross_entropy(logits.astype(dtype), labels.astype(dtype))


@shaped("b k, b k -> b")
def focal(logits, labels, gamma: float = 2.0):
    """Focal loss of every image, (1 − p)^gamma · −log p of its class: two [b, k] -> [b].

    The factor carries no gradient, as in the reference. optax's focal loss is of sigmoids.

    Args:
        logits: before the softmax.
        labels: 1 at the image's class, else 0.
        gamma: focusing; 0 is `cross_entropy`.
    """
    cost = cross_entropy(logits, labels)
    # 1 − p without cancellation.
    missing = -jnp.expm1(-jax.lax.stop_gradient(cost))
    return missing**gamma * cost


@shaped("b k, b k, k -> b")
def weighted_cross_entropy(logits, labels, weights):
    """Cross-entropy by class weights, w·cost / mean of the batch's w, of every image: -> [b].

    The plain mean over the batch is then PyTorch's weighted mean, Σ w·cost / Σ w: w is of the image's
    class, and the mean weight of the images at hand is part of the value. An image's value therefore
    depends on the batch it is in; accumulated small batches are weighted each by itself.

    Args:
        logits: [b, k] before the softmax.
        labels: [b, k], 1 at the image's class, else 0.
        weights: [k] of classes (`class_weights`), all positive.
    """
    cost = cross_entropy(logits, labels)
    of_image = (labels.astype(cost.dtype) * jnp.asarray(weights, cost.dtype)[None]).sum(axis=-1)
    return of_image * cost / of_image.mean()


@shaped("k -> k")
def class_weights(counts) -> np.ndarray:
    """Weight of every class, 1 − ln(n / n of the largest): counts of training images [k] -> float64 [k].

    1 for the largest class, and 1 more each time a class is e times smaller.

    Raises:
        InputError: a class without an image, whose weight would be infinite.
    """
    counts = np.asarray(counts, np.float64)
    if not (counts > 0).all():
        empty = np.flatnonzero(~(counts > 0))
        raise InputError(
            f"{len(empty)} classes have no training image (the first: class {empty[0]}), so a loss weighted "
            "by class sizes has no weight for them; take another loss, or leave these classes out"
        )
    return 1 - np.log(counts / counts.max())
