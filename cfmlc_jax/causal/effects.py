"""The combined prediction of whole image and patches, null inputs, and the total direct effect (TDE)."""

import jax.numpy as jnp

from cfmlc_jax.causal import patches
from cfmlc_jax.shapes import shaped

# Null images that are the same for all images; "blur" is not.
FIXED_NULLS = ("zeros", "mean")
NULL_KINDS = (*FIXED_NULLS, "blur")


@shaped("..., ... -> ...")
def combine(whole, patch, patch_weight: float = 0.5):
    """Logits of the final prediction: the weighted mean of whole and patch logits, both [b, k].

    Logits are averaged, not probabilities, and equally by default, as in the reference.
    """
    return (1 - patch_weight) * whole + patch_weight * patch


def total_direct_effect(factual, counterfactual, alpha):
    """Total direct effect of the target, its context held fixed: factual − alpha·counterfactual, [b, k].

    If all images share one counterfactual, this shifts a class's logits by a constant: it changes
    thresholded metrics and cannot change average precision.
    """
    return factual - alpha * counterfactual


@shaped("b h w c -> _ h w c")
def null_images(images, kind: str, mean_colour=None):
    """Null images, which replace removed content: [b, h, w, c] -> [1 or b, h, w, c].

    Args:
        images: whole views in [0, 1].
        kind: "zeros" (black), "mean" (one colour) or "blur" (the image smoothed by a Gaussian whose
            sigma is an eighth of the side). The first two give one null for all images.
        mean_colour: [c], the mean of the training data, for "mean".

    Raises:
        ValueError: an unknown kind, or "mean" without a mean colour.
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
    """Logits without the target's patch but with its context: two [b, p, k] -> [b, k].

    For class k, the prediction on the image without patch p is weighted by the class's own attention
    to p, so that mostly the pivot patch is removed.

    Args:
        attention: factual attention logits.
        removed: combined logits of the image with patch p replaced by the null.
    """
    return (patches.patch_weights(attention) * removed).sum(axis=1)


@shaped("b p p k, _ p k -> b p p k")
def with_null_removed(logits, null):
    """Patch logits of images without one patch each, with the null's logits for the removed one: [b, p, p, k] -> same.

    Args:
        logits: entry [:, p] has the logits of all patches of the image without patch p.
        null: logits of the null's patches, [1 or b, p, k].
    """
    removed = jnp.eye(logits.shape[1], dtype=bool)[None, :, :, None]
    return jnp.where(removed, null[:, None], logits)


@shaped("b p p k, b p p k -> b p k")
def pooled_without_each(attention, scores, pool=patches.patch_logits):
    """Pooled patch logits of the images without one patch each: two [b, p, p, k] -> [b, p, k].

    Args:
        attention: entry [:, p] is the attention of all patches of the image without patch p.
        scores: likewise.
        pool: attention and scores -> class evidence, as `patches.Pooling.logits`.
    """
    b, p, _, k = attention.shape
    rows = (b * p, p, k)
    return pool(attention.reshape(rows), scores.reshape(rows)).reshape(b, p, k)


def _gaussian(n: int, dtype):
    """Matrix [n, n] that smooths a row of n pixels; its rows sum to 1, so that edges are not darkened."""
    offset = jnp.arange(n)[:, None] - jnp.arange(n)[None, :]
    weights = jnp.exp(-0.5 * (offset / (n / 8)) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(dtype)
