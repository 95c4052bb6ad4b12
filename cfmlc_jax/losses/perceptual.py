"""Perceptual distances per sample: content from feature maps, style from their Gram matrices.

After Johnson et al. (ECCV 2016) with absolute differences, as Sauer & Geiger (ICLR 2021) use them.
Features are lists of maps [b, h, w, c], the shallowest first; the caller chooses the network.
"""

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped

# Factor of style distances, because the entries of Gram matrices are small.
STYLE_SCALE = 5000.0


def content(features, targets, weights):
    """Content distance, Σ w · mean |f − g| over the maps: two lists of [b, h, w, c] -> [b]."""
    return sum(
        weight * _distance(f, g) for f, g, weight in zip(features, targets, weights, strict=True) if weight
    )


def style(features, targets, weights):
    """Style distance, Σ w² · 5000 · mean |G(f) − G(g)| over the maps, G is `gram`: two lists of [b, h, w, c] -> [b].

    The weights are squared, as in the reference.
    """
    return sum(
        weight**2 * STYLE_SCALE * _distance(gram(f), gram(g))
        for f, g, weight in zip(features, targets, weights, strict=True)
        if weight
    )


@shaped("b h w c -> b c c")
def gram(features):
    """Gram matrix of the channels, summed over pixels and divided by h·w·c: [b, h, w, c] -> [b, c, c].

    The products use full float32: two Gram matrices differ by little compared with their entries.
    """
    x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    _, h, w, c = x.shape
    return jnp.einsum("bhwc,bhwd->bcd", x, x, precision=jax.lax.Precision.HIGHEST) / (h * w * c)


@shaped("b ..., b ... -> b")
def _distance(f, g):
    wide = jnp.promote_types(f.dtype, jnp.float32)
    return jnp.abs(f.astype(wide) - g.astype(wide)).mean(axis=tuple(range(1, f.ndim)))
