"""Looks of digits: colours and textures of digit and background, one of ten for each label.

After the MNIST variants of Sauer & Geiger, "Counterfactual Generative Networks" (ICLR 2021): a digit's ink is a mask;
its texture and its background are chosen by a label each. Images here are uint8, the reference's are floats.
"""

import functools
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from cfmlc_jax.data.sources import scenes
from cfmlc_jax.errors import InputError

SIDE = 32  # pixels of an image
# Row or column of a 28-pixel handwriting that each of the 32 shows: nearest neighbours by corners, as PyTorch
# chooses them, and by centres, as Pillow does. The reference uses both.
BY_CORNER = np.arange(SIDE) * 28 // SIDE
BY_CENTRE = (2 * np.arange(SIDE) + 1) * 28 // (2 * SIDE)
FAINTEST = 26  # least ink, of 255, of the mask: more than .1

# Background colours by label; a digit has the colour of four labels further on.
PALETTE = np.array([
    (0, 100, 0), (0, 0, 139), (176, 48, 96), (255, 69, 0), (255, 255, 0),
    (222, 184, 135), (0, 255, 0), (0, 255, 255), (255, 0, 255), (100, 149, 237),
], np.uint8)  # fmt: skip
BACKGROUND_COLOURS = PALETTE.astype(np.float32) / np.float32(255)
OBJECT_COLOURS = np.roll(BACKGROUND_COLOURS, -4, axis=0)
DEVIATION = 0.01  # of both colours' jitter
# Mean colours by label of the file "mnist_10color_jitter_var_0.020.npy", second-hand: as programs that use the file
# list them. They were not compared with the file.
MEAN_COLOURS = np.array([
    (220, 20, 60), (0, 128, 128), (253, 233, 16), (0, 149, 182), (237, 145, 33),
    (145, 30, 188), (70, 240, 240), (250, 197, 187), (210, 245, 60), (128, 0, 0),
], np.float32) / np.float32(255)  # fmt: skip
COLOURED_DEVIATION = 0.02**0.5  # by the variance in the file's name

TEXTURE_SIDE, PADDING = 150, 3  # of the reference's texture files, pixels
# Embedded photo, by name, of each label's texture, and whether it is upside down.
_PHOTOS = ((0, False), (1, False), (2, False), (3, False), (4, False), (5, False), (6, False), (7, False),
           (1, True), (3, True))  # fmt: skip
_TINTS = ((230, 60, 60), (60, 190, 70), (80, 110, 250), (240, 220, 60), (230, 80, 230),
          (70, 220, 230), (245, 150, 50), (150, 90, 240), (200, 200, 200), (160, 235, 90))  # fmt: skip


class Look(Protocol):
    """How a digit is painted.

    places: row or column of the handwriting that each of the image's 32 shows.
    num_draws: uniform draws in [0, 1) that `paint` needs.
    fingerprint: a checksum of the textures; 0 without any.
    shows_background: whether the label of the background changes the image.
    """

    places: np.ndarray
    num_draws: int
    fingerprint: int
    shows_background: bool

    def paint(self, mask: np.ndarray, texture: int, background: int, draws: Sequence[float]) -> np.ndarray:
        """The image of a mask with the textures of two labels: bool [s, s] -> uint8 [s, s, 3], s at least 32."""


def ink_mask(ink: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The pixels with more than .1 of full ink, enlarged: uint8 [28, 28] -> bool [32, 32]."""
    return ink[np.ix_(places, places)] >= FAINTEST


def compose(mask: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Foreground inside the mask, background outside: bool [h, w], two [h, w, 3] or [3] -> [h, w, 3]."""
    return np.where(mask[..., None], foreground, background)


def double_coloured(mask: np.ndarray, texture: int, background: int, jitter: np.ndarray) -> np.ndarray:
    """A digit in one colour on another, not clipped, as in the reference: float32 [32, 32, 3] in about [0, 1].

    Args:
        mask: bool [32, 32].
        texture: label of the digit's colour.
        background: label of the background's colour.
        jitter: float32 [2, 3], added to the colours of background and digit.
    """
    return compose(mask, OBJECT_COLOURS[texture] + jitter[1], BACKGROUND_COLOURS[background] + jitter[0])


def to_uint8(image: np.ndarray) -> np.ndarray:
    """An image of 0 to 1, clipped and rounded to 256 levels."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def normals(draws: Iterable[float]) -> np.ndarray:
    """Standard normal numbers by the inverse of their distribution: n uniform draws in [0, 1) -> float32 [n].

    NumPy may change how its generators make normal numbers; uniform ones it keeps.
    """
    inverse = NormalDist().inv_cdf
    return np.array([inverse(max(draw, 2.0**-53)) for draw in draws], np.float32)


class Coloured:
    """A coloured digit on black: a mean colour by the label of the texture, and normal jitter for each image.

    In place of the file that the reference downloads, Colored MNIST of Kim et al. (CVPR 2019). What is known of it
    here is second-hand: ten mean colours, normal distributions around them with the variance in the file's name, a
    random mean colour in test images. How it treats shades of ink is not known: here a digit has one colour. The
    background's label shows nowhere.
    """

    places = BY_CENTRE
    num_draws = 3
    fingerprint = 0
    shows_background = False

    def paint(self, mask, texture, background, draws):
        """The digit in a colour drawn around its texture's mean colour."""
        del background
        colour = MEAN_COLOURS[texture] + np.float32(COLOURED_DEVIATION) * normals(draws)
        return compose(mask, to_uint8(colour), np.zeros(3, np.uint8))


class DoubleColoured:
    """A digit in one colour on another: `double_coloured` with normal jitter, clipped and rounded to uint8."""

    places = BY_CORNER
    num_draws = 6
    fingerprint = 0
    shows_background = True

    def paint(self, mask, texture, background, draws):
        """The digit and its background in their colours, both with jitter."""
        jitter = np.float32(DEVIATION) * normals(draws).reshape(2, 3)
        return to_uint8(double_coloured(mask, texture, background, jitter))


class Textures(NamedTuple):
    """Textures by label, uint8 [h, w, 3] each, of which random crops are used."""

    objects: tuple[np.ndarray, ...]
    backgrounds: tuple[np.ndarray, ...]


class Textured:
    """A random crop of a texture inside the digit, one of another texture outside."""

    places = BY_CORNER
    num_draws = 4
    shows_background = True

    def __init__(self, textures: Textures):
        self._textures = textures
        self.fingerprint = 0
        for texture in (*textures.objects, *textures.backgrounds):
            self.fingerprint = zlib.crc32(texture.tobytes(), self.fingerprint)

    def paint(self, mask, texture, background, draws):
        """Crops of the two textures, of the background first."""
        behind = crop(self._textures.backgrounds[background], *draws[:2], size=len(mask))
        return compose(mask, crop(self._textures.objects[texture], *draws[2:], size=len(mask)), behind)


def crop(texture: np.ndarray, row: float, column: float, *, size: int = SIDE) -> np.ndarray:
    """The part of a texture at two uniform draws in [0, 1): uint8 [h, w, 3] -> [size, size, 3]."""
    top, left = (int(draw * (side - size + 1)) for draw, side in zip((row, column), texture.shape))
    return texture[top : top + size, left : left + size]


@functools.cache
def embedded_textures() -> Textures:
    """Textures from the eight embedded photos, tinted; see `cfmlc_jax/data/assets/NOTICE.md`.

    Backgrounds are the left parts of the photos in dark tints, objects the right parts in light ones, so that a
    digit stands out in every combination. Levels of grey are spread evenly first, so that no texture is flat.
    Labels 0 to 7 have the photos by name; 8 and 9 have two of them again, upside down. An object has the photo
    and the tint of four labels further on, as with double colours. All splits have the same textures.
    """
    left, right = scenes.photos("train"), scenes.photos("test")
    objects, backgrounds = [], []
    for label, (photo, flipped) in enumerate(_PHOTOS):
        tint = np.array(_TINTS[label])
        backgrounds.append(_tinted(_spread(left[photo], flipped), tint * 10 // 16, 0))
        other, flipped = _PHOTOS[(label + 4) % 10]
        tint = np.array(_TINTS[(label + 4) % 10])
        objects.append(_tinted(_spread(right[other], flipped), tint, 144))
    return Textures(tuple(objects), tuple(backgrounds))


def _spread(photo, flipped):
    """Grey levels of a photo replaced by their share of darker pixels: int64 [h, w], 0 to 255."""
    grey = np.asarray(Image.fromarray(photo).convert("L"))[:: -1 if flipped else 1]
    shares = np.cumsum(np.bincount(grey.ravel(), minlength=256))
    return shares[grey] * 255 // grey.size


def _tinted(grey, tint, least):
    """Grey levels as shades of a tint, lifted to at least `least` of 255 towards white: uint8 [h, w, 3]."""
    shades = grey[..., None] * tint // 255
    return (least + shades * (255 - least) // 255).astype(np.uint8)


def read_textures(root: Path) -> Textures:
    """The textures in root/textures/object and root/textures/background, prepared as in the reference.

    Each folder has ten JPEG files, whose names begin with the digits 0 to 9 in turn. A texture is resized to
    150 × 150 by nearest pixels and padded by three reflected pixels.

    Raises:
        InputError: a folder or a digit's file is missing; a file is no image, not RGB, or below 150 pixels.
    """
    objects, backgrounds = (_read_folder(root / "textures" / name) for name in ("object", "background"))
    return Textures(objects, backgrounds)


def _read_folder(folder: Path) -> tuple[np.ndarray, ...]:
    paths = sorted(folder.glob("*.jpg"))
    digits = [path.name[0] for path in paths]
    if digits != list("0123456789"):
        state = f"has files for {' '.join(digits)}" if paths else "has no .jpg files"
        raise InputError(
            f"{folder} {state}, wanted one for each digit, as 0_….jpg to 9_….jpg; copy mnists/data/textures "
            f"of https://github.com/autonomousvision/counterfactual_generative_networks to {folder.parent}"
        )
    return tuple(_read_texture(path) for path in paths)


def _read_texture(path: Path) -> np.ndarray:
    side = TEXTURE_SIDE
    way_out = f"give an RGB JPEG of at least {side} × {side} pixels"
    try:
        with Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            pixels = np.asarray(image.resize((side, side), Image.Resampling.NEAREST))
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as an image ({reason}); {way_out}") from error
    if mode != "RGB" or min(width, height) < side:
        raise InputError(f"{path} has mode {mode} and {width} × {height} pixels; {way_out}")
    return np.pad(pixels, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
