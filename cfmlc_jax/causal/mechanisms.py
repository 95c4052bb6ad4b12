"""Images as three independent mechanisms: a mask (shape), a foreground (texture) and a background.

After Sauer & Geiger, "Counterfactual Generative Networks" (ICLR 2021, arXiv:2101.06046, section 3):
a counterfactual image intervenes on one mechanism's input and leaves the others' as they are.
"""

import jax
import jax.numpy as jnp

from cfmlc_jax.shapes import shaped

# The mechanisms, in the order in which the reference draws their noise.
SHAPE, TEXTURE, BACKGROUND = MECHANISMS = ("shape", "texture", "background")
# Values of masks are clipped to this range: outside it their entropy has no finite gradient.
MASK_RANGE = (1e-4, 0.9999)


def same_for_all(x) -> dict:
    """The same input for all mechanisms, without intervention: x -> {mechanism: x}."""
    return dict.fromkeys(MECHANISMS, x)


@shaped("b h w 1, b h w c, b h w c -> b h w c")
def compose(mask, foreground, background):
    """Composed images m · f + (1 − m) · b (equation 2): [b, h, w, 1], two [b, h, w, c] -> [b, h, w, c]."""
    return mask * foreground + (1 - mask) * background


@shaped("... -> ...")
def clamp_mask(mask):
    """The mask clipped to `MASK_RANGE`; clipped values have no gradient: [...] -> [...]."""
    return jnp.clip(mask, *MASK_RANGE)


def along_sides(mask, pixels: int = 2):
    """The mean of each mask over the pixels along its four sides: [b, h, w, 1] -> [b]."""
    h, w = mask.shape[1:3]
    rows, columns = jnp.arange(h)[:, None], jnp.arange(w)[None]
    sides = (rows < pixels) | (rows >= h - pixels) | (columns < pixels) | (columns >= w - pixels)
    return jnp.mean(mask[..., 0], axis=(1, 2), where=sides[None])


@shaped("b h w c, b 2 -> b h w c")
def shuffle(textures, offsets):
    """Each texture tiled 2×2 and cropped to its own size at its offset: [b, h, w, c], [b, 2] -> [b, h, w, c].

    The result is the texture rolled by −offset (row, column). Local structure is kept but moved, so that a
    texture cannot carry a shape.
    """
    return jax.vmap(lambda texture, offset: jnp.roll(texture, -offset, axis=(0, 1)))(textures, offsets)


def draw_offsets(key, b: int, size: int):
    """Offsets for `shuffle`, uniform over 0 … size: key -> [b, 2].

    0 and size give the same crop, which is therefore twice as likely as any other, as in the reference.
    """
    return jax.random.randint(key, (b, 2), 0, size + 1)


def truncated_noise(key, shape, truncation: float):
    """Normal noise truncated to ±2 and scaled by `truncation`: key -> float32 of `shape`."""
    return truncation * jax.random.truncated_normal(key, -2.0, 2.0, shape)
