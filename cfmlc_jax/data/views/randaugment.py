"""RandAugment as in the reference: two of fifteen operations, each applied with probability ½.

The numbers are those of the PyPI package ``randaugment`` 1.0.2 (not of torchvision's class of that
name). Random numbers are drawn only in `sample`; everything else is a pure function of a uint8 RGB
Pillow image.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from cfmlc_jax.data.views.shear import shear_x, shear_y, smooth

LEVELS = range(1, 10)
PROBABILITY = 0.5
_GREY = (128, 128, 128)
_CUTOUT_COLOUR = (125, 122, 113)


class Draw(NamedTuple):
    """Random parameters of an operation; each operation uses those that it needs.

    sign: +1 or -1 (shears, translations, colour, contrast, sharpness, brightness).
    x, y: a point in the unit square, [0, 1) each (cutout).
    """

    sign: int = 1
    x: float = 0.5
    y: float = 0.5


class Step(NamedTuple):
    """One operation of a pair: its name in `OPS`, its level, its draw, and whether it is applied."""

    name: str
    level: int
    draw: Draw
    applied: bool


def _invert(view, magnitude, draw):
    return ImageOps.invert(view)


def _cutout(view, magnitude, draw):
    # Unlike in `patches.cutout`, the far edge of this box is not painted.
    x, y, half = int(draw.x * view.width), int(draw.y * view.height), int(magnitude) // 2
    covered = view.copy()
    box = (max(x - half, 0), max(y - half, 0), min(x + half, view.width), min(y + half, view.height))
    covered.paste(_CUTOUT_COLOUR, box)
    return covered


def _sharpness(view, magnitude, draw):
    # As `ImageEnhance.Sharpness` does it.
    return Image.blend(smooth(view), view, 1 + magnitude * draw.sign)


def _autocontrast(view, magnitude, draw):
    return ImageOps.autocontrast(view)


def _posterize(view, magnitude, draw):
    return ImageOps.posterize(view, int(magnitude))


def _shear_x(view, magnitude, draw):
    return shear_x(view, magnitude * draw.sign, _GREY[0])


def _translate_x(view, magnitude, draw):
    return _affine(view, (1, 0, magnitude * view.width * draw.sign, 0, 1, 0))


def _translate_y(view, magnitude, draw):
    return _affine(view, (1, 0, 0, 0, 1, magnitude * view.height * draw.sign))


def _shear_y(view, magnitude, draw):
    return shear_y(view, magnitude * draw.sign, _GREY[0])


def _affine(view, matrix):
    return view.transform(
        view.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=_GREY
    )


def _rotate(view, magnitude, draw):
    # Always counter-clockwise, as in the reference. The reference rotates in RGBA and blends with grey, which
    # gives the same pixels as a grey fill (resampling is nearest) in twice the time.
    return view.rotate(magnitude, fillcolor=_GREY)


def _equalize(view, magnitude, draw):
    return ImageOps.equalize(view)


def _contrast(view, magnitude, draw):
    return ImageEnhance.Contrast(view).enhance(1 + magnitude * draw.sign)


def _color(view, magnitude, draw):
    return ImageEnhance.Color(view).enhance(1 + magnitude * draw.sign)


def _solarize(view, magnitude, draw):
    # The threshold is not rounded: pixels are compared with 113.8, for example.
    return ImageOps.solarize(view, magnitude)


def _brightness(view, magnitude, draw):
    return ImageEnhance.Brightness(view).enhance(1 + magnitude * draw.sign)


# (view, magnitude, draw) -> a new view of the same size; the argument is not changed.
OPS: dict[str, Callable[[Image.Image, float, Draw], Image.Image]] = {
    "Invert": _invert,
    "Cutout": _cutout,
    "Sharpness": _sharpness,
    "AutoContrast": _autocontrast,
    "Posterize": _posterize,
    "ShearX": _shear_x,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "ShearY": _shear_y,
    "Rotate": _rotate,
    "Equalize": _equalize,
    "Contrast": _contrast,
    "Color": _color,
    "Solarize": _solarize,
    "Brightness": _brightness,
}
_NAMES = tuple(OPS)


def _by_level(first, last):
    return np.linspace(first, last, LEVELS.stop)


# Magnitude of each level, 0 to 9; operations that are not listed have none. Units: pixels (cutout),
# pixels per pixel (shears), fractions of the side (translations), degrees (rotation), bits (posterize),
# pixel values (solarize), and distance of the enhancement factor from 1 (all others).
MAGNITUDES: dict[str, np.ndarray] = {
    "Cutout": _by_level(0, 20).round(),
    "Sharpness": _by_level(0, 0.9),
    "Posterize": _by_level(8, 4).round(),
    "ShearX": _by_level(0, 0.3),
    "TranslateX": _by_level(0, 150 / 331),
    "TranslateY": _by_level(0, 150 / 331),
    "ShearY": _by_level(0, 0.3),
    "Rotate": _by_level(0, 30),
    "Contrast": _by_level(0, 0.9),
    "Color": _by_level(0, 0.9),
    "Solarize": _by_level(256, 0),
    "Brightness": _by_level(0, 0.9),
}


def apply(view: Image.Image, name: str, level: int, draw: Draw) -> Image.Image:
    """The view after one operation: RGB [h, w] -> a new RGB [h, w].

    Args:
        view: uint8 RGB.
        name: a key of `OPS`.
        level: one of `LEVELS`.
        draw: random parameters of the operation.

    Raises:
        ValueError: an unknown name or level.
    """
    if name not in OPS:
        raise ValueError(f"no operation {name!r}; there are {', '.join(OPS)}")
    if level not in LEVELS:
        raise ValueError(f"level {level} of {name} is outside {LEVELS.start} to {LEVELS.stop - 1}")
    magnitude = float(MAGNITUDES[name][level]) if name in MAGNITUDES else 0.0
    return OPS[name](view, magnitude, draw)


def sample(generator: np.random.Generator) -> tuple[Step, Step]:
    """A random pair of steps: operations and levels uniform, with replacement, each applied with probability ½.

    It always draws the same number of random numbers, so that the result for one view does not shift
    the numbers of the next view.
    """
    first, second = generator.random((2, 6))
    return _step(*first), _step(*second)


def _step(name, level, coin, sign, x, y):
    return Step(
        name=_NAMES[int(name * len(_NAMES))],
        level=LEVELS[int(level * len(LEVELS))],
        draw=Draw(sign=1 if sign < 0.5 else -1, x=float(x), y=float(y)),
        applied=bool(coin < PROBABILITY),
    )


def augment(view: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The view after a random pair of steps: RGB [h, w] -> RGB [h, w]; the same object if neither is applied."""
    for step in sample(generator):
        if step.applied:
            view = apply(view, step.name, step.level, step.draw)
    return view
