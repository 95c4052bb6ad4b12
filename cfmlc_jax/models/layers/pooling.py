"""Changes of a map's size: pooling, folding pixels into channels, upsampling."""

import jax
import jax.numpy as jnp


def max_pool(x):
    """3×3 maximum at stride 2 with one pixel of padding: [b, h, w, c] -> [b, h/2, w/2, c].

    Computed along rows, then along columns, from strided slices: the gradient of XLA's windowed maximum is
    several times slower on CPU.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        widths = [(0, 0)] * 4
        widths[axis] = (1, 1)
        padded = jnp.pad(x, widths, constant_values=-jnp.inf)
        taps = [
            jax.lax.slice_in_dim(padded, offset, offset + size - (1 - size % 2), stride=2, axis=axis)
            for offset in range(3)
        ]
        x = jnp.maximum(jnp.maximum(taps[0], taps[1]), taps[2])
    return x


def max_pool2(x, *, ceil: bool = False):
    """2×2 maximum at stride 2: [b, h, w, c] -> [b, h/2, w/2, c]; h/2 and w/2 are rounded down, or up with `ceil`."""
    b, h, w, c = x.shape
    if ceil:
        x = jnp.pad(x, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)], constant_values=-jnp.inf)
    else:
        x = x[:, : h - h % 2, : w - w % 2]
    return x.reshape(b, x.shape[1] // 2, 2, x.shape[2] // 2, 2, c).max(axis=(2, 4))


def average_pool(x):
    """Mean over the pixels, at least float32: [b, h, w, c] -> [b, c].

    In half precision the mean of 14² values would lose a digit of every logit.
    """
    return x.mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def space_to_depth(x, block: int):
    """Squares of block × block pixels folded into channels: [b, h, w, c] -> [b, h/block, w/block, block²·c].

    The output channel is (dy·block + dx)·c + channel, as in TResNet.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def upsample_nearest(x):
    """Every pixel repeated 2×2 times: [b, h, w, c] -> [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
