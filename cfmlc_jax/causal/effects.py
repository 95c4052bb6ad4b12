"""The prediction that patches strengthen, null inputs, and the total direct effect (TDE)."""

import jax.numpy as jnp

from cfmlc_jax.causal import patches
from cfmlc_jax.shapes import shaped

NULL_KINDS = ("zeros", "mean", "blur")


@shaped("..., ... -> ...")
def combine(whole, patch):
    """Logits of the final prediction: the mean of whole and patch logits, both [b, k].

    Logits are averaged, not probabilities, as in the reference.
    """
    return (whole + patch) / 2


def total_direct_effect(factual, counterfactual, alpha):
    """What the target adds with its context held fixed: factual − alpha·counterfactual, [b, k].

    With one counterfactual for all images this shifts a class's logits by a constant: it moves
    thresholded metrics and cannot move average precision.
    """
    return factual - alpha * counterfactual


@shaped("b h w c -> _ h w c")
def null_images(images, kind: str, mean_colour=None):
    """What an image shows when it shows nothing: [b, h, w, c] -> [1 or b, h, w, c].

    Args:
        images: whole views in [0, 1].
        kind: "zeros" (black), "mean" (one colour) or "blur" (the image without detail, one
            Gaussian of a sigma of an eighth of the side). The first two are one null for all images.
        mean_colour: [c], the mean of the training data, for "mean".

    Raises:
        ValueError: an unknown kind, or "mean" without a colour.
    """
    if kind == "zeros":
        return jnp.zeros_like(images[:1])
    if kind == "mean":
        if mean_colour is None:
            raise ValueError("the null 'mean' needs the mean colour of the training data")
        return jnp.broadcast_to(mean_colour.astype(images.dtype), images[:1].shape)
    if kind == "blur":
        _, h, w, _ = images.shape
        return jnp.einsum("bhwc,yh,xw->byxc", images, _gaussian(h, images.dtype), _gaussian(w, images.dtype))
    raise ValueError(f"null {kind!r} is not one of {', '.join(NULL_KINDS)}")


@shaped("b p k, b p k -> b k")
def pivot_counterfactual(attention, removed):
    """Logits without the target's patch, context kept: two [b, p, k] -> [b, k].

    Class k weighs the predictions on the images with patch p removed by its own attention to p,
    so its pivot patch decides what is removed.

    Args:
        attention: factual attention logits.
        removed: combined logits of the image with patch p replaced by the null.
    """
    return (patches.patch_weights(attention) * removed).sum(axis=1)


@shaped("b p p k, _ p k -> b p p k")
def with_null_removed(logits, null):
    """Patches' logits of images without each patch, the removed one's being the null's: [b, p, p, k] -> the same.

    Args:
        logits: row p is of the image without patch p.
        null: of the null's patches, [1 or b, p, k].
    """
    removed = jnp.eye(logits.shape[1], dtype=bool)[None, :, :, None]
    return jnp.where(removed, null[:, None], logits)


@shaped("b p p k, b p p k -> b p k")
def pooled_without_each(attention, scores, pool=patches.patch_logits):
    """Patch logits of the image without each patch: two [b, p, p, k] -> [b, p, k].

    Args:
        attention: row p is of the patches of the image without patch p.
        scores: likewise.
        pool: attention and scores -> class evidence, as `patches.Pooling.logits`.
    """
    b, p, _, k = attention.shape
    rows = (b * p, p, k)
    return pool(attention.reshape(rows), scores.reshape(rows)).reshape(b, p, k)


def _gaussian(n: int, dtype):
    """Matrix [n, n] that smooths a line of n pixels; rows sum to 1, so edges are not darkened."""
    offset = jnp.arange(n)[:, None] - jnp.arange(n)[None, :]
    weights = jnp.exp(-0.5 * (offset / (n / 8)) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(dtype)
