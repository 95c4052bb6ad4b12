"""Softmax losses for single-label images, per image and in float32; the caller reduces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfmlc_jax.errors import InputError
from cfmlc_jax.shapes import shaped


@shaped("b k, b k -> b")
def cross_entropy(logits, labels):
    """Softmax cross-entropy of every image: two [b, k] -> [b].

    Computed in float32 or wider.

    Args:
        logits: before the softmax.
        labels: 1 at the image's class, else 0.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    return optax.softmax_cross_entropy(logits.astype(dtype), labels.astype(dtype))


@shaped("b k, b k -> b")
def focal(logits, labels, gamma: float = 2.0):
    """Focal loss of every image, (1 − p)^gamma · −log p of its class: two [b, k] -> [b].

    No gradient flows through the factor, as in the reference. (optax's focal loss uses sigmoids.)

    Args:
        logits: before the softmax.
        labels: 1 at the image's class, else 0.
        gamma: focusing exponent; 0 gives `cross_entropy`.
    """
    cost = cross_entropy(logits, labels)
    # 1 − p without cancellation.
    missing = -jnp.expm1(-jax.lax.stop_gradient(cost))
    return missing**gamma * cost


@shaped("b k, b k, k -> b")
def weighted_cross_entropy(logits, labels, weights):
    """Class-weighted cross-entropy of every image, w·cost / mean(w) over the batch: two [b, k], [k] -> [b].

    w is the weight of the image's class. The plain mean over the batch is then PyTorch's weighted mean,
    Σ w·cost / Σ w. Because of the division by the batch's mean weight, an image's value depends on the other
    images of the batch; gradient accumulation weighs each micro-batch by its Σ w (`image_weights`).

    Args:
        logits: before the softmax.
        labels: 1 at the image's class, else 0.
        weights: class weights (`class_weights`), all positive.
    """
    cost = cross_entropy(logits, labels)
    of_images = image_weights(labels.astype(cost.dtype), weights)
    return of_images * cost / of_images.mean()


@shaped("b k, k -> b")
def image_weights(labels, weights):
    """The weight of each image's class: [b, k], [k] -> [b], of the type of the labels.

    Args:
        labels: 1 at the image's class, else 0.
        weights: class weights (`class_weights`).
    """
    return (labels * jnp.asarray(weights, labels.dtype)[None]).sum(axis=-1)


@shaped("k -> k")
def class_weights(counts) -> np.ndarray:
    """Weight of every class, 1 − ln(n / max n), n its number of training images: [k] -> float64 [k].

    The largest class has weight 1; a class e times smaller has 1 more.

    Raises:
        InputError: a class has no image, and its weight would be infinite.
    """
    counts = np.asarray(counts, np.float64)
    if not (counts > 0).all():
        empty = np.flatnonzero(~(counts > 0))
        raise InputError(
            f"{len(empty)} classes have no training image (the first: class {empty[0]}), so a loss weighted "
            "by class size has no weight for them; choose another loss, or remove these classes"
        )
    return 1 - np.log(counts / counts.max())
