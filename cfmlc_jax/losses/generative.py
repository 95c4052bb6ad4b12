"""Losses of counterfactual generators: of critics' scores, masks and images, all per sample.

After Sauer & Geiger, "Counterfactual Generative Networks" (ICLR 2021, arXiv:2101.06046). Their losses
are weighted sums of these; the caller applies the weights. Computed in float32 or wider.
"""

import jax.numpy as jnp

from cfmlc_jax.shapes import shaped

# A mask is clipped this far inside (0, 1) for its entropy, whose slope at 0 and 1 is infinite. The generators'
# masks never reach this far.
_OPEN = 1e-6


@shaped("b -> b")
def generator_cost(fake):
    """Squared distance of the critic's scores of generated images from 1 (LSGAN): [b] -> [b]."""
    return jnp.square(_wide(fake) - 1)


@shaped("b, b -> b")
def critic_cost(real, fake):
    """Half the squared distances of real scores from 1 and of generated scores from 0 (LSGAN): two [b] -> [b]."""
    return (jnp.square(_wide(real) - 1) + jnp.square(_wide(fake))) / 2


@shaped("b ..., b ... -> b")
def absolute_error(images, targets):
    """Mean absolute difference: two [b, ...] -> [b]."""
    return _mean(jnp.abs(_wide(images) - _wide(targets)))


@shaped("b ... -> b")
def binary_entropy(mask):
    """Mean entropy of a mask's pixels in bits, 0 for a binary mask and at most 1: [b, ...] in [0, 1] -> [b].

    Values within 1e-6 of 0 or 1 have no gradient.
    """
    p = jnp.clip(_wide(mask), _OPEN, 1 - _OPEN)
    return _mean(-p * jnp.log2(p) - (1 - p) * jnp.log2(1 - p))


@shaped("b ... -> b")
def mask_size(mask, low: float = 0.1, high: float = 0.9):
    """Distance of a mask's mean from the interval [low, high]: [b, ...] -> [b]. Its weight in the paper is 500."""
    mean = _mean(_wide(mask))
    return jnp.maximum(low - mean, 0) + jnp.maximum(mean - high, 0)


@shaped("b ... -> b")
def background_size(saliency):
    """Mean saliency of backgrounds, which should show no object: [b, ...] -> [b]. Its weight in the paper is 2000."""
    return _mean(_wide(saliency))


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mean(x):
    return x.mean(axis=tuple(range(1, x.ndim)))
