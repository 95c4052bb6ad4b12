"""Objects cut out of photos, in poses: the objects of photo scenes (`scenes.Scenes`).

The package has one photo of most classes. Its objects vary by *poses*, 500 for each class: the part of the object that is
shown, a rotation, and a stretch. Each use adds a mirror image, a size, a saturation, a contrast, a brightness and gains of
the channels. Training, validation and test have different poses, and different coins, of which there are 24. All other
photos are shared.

Everything is integer arithmetic on uniform draws, so that pixels are the same on every machine: a rotation by
2·atan(k / 32) has the rational sine 64k / (1024 + k²) and cosine (1024 − k²) / (1024 + k²).
"""

import functools
from typing import NamedTuple

import numpy as np
from PIL import Image

from cfmlc_jax.data.sources import embedded

CLASS_NAMES = (
    *("cat", "flower", "raccoon", "pagoda", "cup", "coin", "retina", "helmet", "shuttle", "photographer"),
)
# The part of the 500 poses of each class that a split uses, and the same shares of several cut-outs of a class.
POSES = {"train": slice(0, 350), "val": slice(350, 400), "test": slice(400, 500)}
NUM_POSES = 500
DRAWS = (
    9  # uniform draws of one appearance: pose, side, mirror, saturation, contrast, brightness, three gains
)
FAINTEST = 48  # least alpha, of 255, at the edges of an object's box
VISIBLE = [255 if alpha >= FAINTEST else 0 for alpha in range(256)]
# Photos of the digit scenes that show no object of these classes, and photos that only photo scenes have.
BACKGROUNDS = (
    ("textures.npz", ("brick", "clock", "grass", "gravel")),
    ("cut_outs.npz", ("garden", "leaves", "tower")),
)

_POSE_DRAWS = 7
_POSE_SEED = 0
_STEEPEST = 14  # of k, for a rotation of 47°
_LEAST_SHOWN = 36  # of 64 parts of each side of a cut-out
_FRACTION = 16  # of a pixel: the resolution of a rotated position


class Pose(NamedTuple):
    """How a cut-out is seen.

    cut_out: its number among those of the class.
    window: left, top, right, bottom of the part that is shown, in 64ths of the cut-out's sides.
    stretch: the factor of the width, in 64ths.
    rotation: k of the module's description.
    """

    cut_out: int
    window: tuple[int, int, int, int]
    stretch: int
    rotation: int


class Appearance(NamedTuple):
    """An object as it is painted.

    image: RGB of the object's box.
    alpha: grey, of the same size: 0 outside the object.
    pose: number of the pose among those of its class.
    gains: of red, green and blue, in 64ths.
    """

    image: Image.Image
    alpha: Image.Image
    pose: int
    gains: tuple[int, int, int]


def appearance(part: str, label: int, size: int, draws: list[float]) -> Appearance:
    """An object of a class in a random pose of a part of the data ("train", "val", "test").

    Args:
        part: of the data.
        label: its class.
        size: side of the scene, pixels; the longer side of the object is 9/32 to 13/32 of it, before it is turned.
        draws: `DRAWS` uniform draws in [0, 1).
    """
    numbers = range(NUM_POSES)[POSES[part]]
    number = numbers[int(draws[0] * len(numbers))]
    pose = poses(label)[number]
    least, most = size * 9 // 32, size * 13 // 32
    side = least + int(draws[1] * (most - least + 1))
    turned = _turned(label, pose, side)
    if draws[2] < 0.5:
        turned = turned[:, ::-1]
    alpha = Image.fromarray(np.ascontiguousarray(turned[..., 3]).astype(np.uint8))
    box = alpha.point(VISIBLE).getbbox()
    colours, gains = _recoloured(turned[..., :3], draws[3:DRAWS])
    return Appearance(Image.fromarray(colours).crop(box), alpha.crop(box), number, gains)


@functools.cache
def backgrounds(part: str) -> tuple[np.ndarray, ...]:
    """The photos behind the objects, a region of each for "train" and "test": uint8 [h, w, 3] or [h, w]."""
    stored = {name: embedded.arrays(name) for name, _ in BACKGROUNDS}
    return tuple(stored[file][f"{photo}_{part}"] for file, photos in BACKGROUNDS for photo in photos)


@functools.cache
def cut_outs(label: int) -> tuple[np.ndarray, ...]:
    """The objects of a class with alpha: uint8 [h, w, 4] each."""
    stored = embedded.arrays("cut_outs.npz")
    prefix = f"{CLASS_NAMES[label]}_"
    return tuple(
        pixels for name, pixels in stored.items() if name.startswith(prefix) and pixels.shape[2] == 4
    )


@functools.cache
def poses(label: int) -> tuple[Pose, ...]:
    """The 500 poses of a class."""
    random = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(_POSE_SEED, spawn_key=(label,)))
    ).random((NUM_POSES, _POSE_DRAWS))
    number = len(cut_outs(label))
    result = []
    for index, (which, x, y, width, height, stretch, rotation) in enumerate(random.tolist()):
        first, last = _share(index, number)
        left, right = _interval(x, width)
        top, bottom = _interval(y, height)
        result.append(
            Pose(
                cut_out=first + int(which * (last - first)),
                window=(left, top, right, bottom),
                stretch=48 + int(stretch * 33),
                rotation=int(rotation * (2 * _STEEPEST + 1)) - _STEEPEST,
            )
        )
    return tuple(result)


def _share(index: int, number: int) -> tuple[int, int]:
    """First and last + 1 of a class's cut-outs that a pose may show: parts share none if there are several."""
    if number == 1:
        return 0, 1
    part = next(part for part, own in POSES.items() if index in range(NUM_POSES)[own])
    return POSES[part].start * number // NUM_POSES, POSES[part].stop * number // NUM_POSES


def _interval(place: float, length: float) -> tuple[int, int]:
    shown = _LEAST_SHOWN + int(length * (64 - _LEAST_SHOWN + 1))
    start = int(place * (64 - shown + 1))
    return start, start + shown


def _turned(label: int, pose: Pose, side: int) -> np.ndarray:
    """The part of the cut-out that the pose shows, on a square that holds it: int32 [s, s, 4], alpha last.

    The longer side of the stretched part is `side` pixels before it is turned.
    """
    width, height = (
        end - start for start, end in zip(*_window(_halved(label, pose.cut_out, 0), pose.window), strict=True)
    )
    longer = max(width * pose.stretch, height * 64)
    shown = max(1, side * width * pose.stretch // longer), max(1, side * height * 64 // longer)
    level = 0
    while width >= 2 * shown[0] << level and height >= 2 * shown[1] << level:
        level += 1
    pixels = _halved(label, pose.cut_out, level)
    (left, top), (right, bottom) = _window(pixels, pose.window)
    return _sampled(pixels[top:bottom, left:right], shown, pose.rotation)


def _window(pixels: np.ndarray, window: tuple[int, int, int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Left and top, right and bottom of a pose's window in a picture [h, w, 4]."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = window
    return (width * left // 64, height * top // 64), (-(-width * right // 64), -(-height * bottom // 64))


@functools.cache
def _halved(label: int, number: int, times: int) -> np.ndarray:
    """A cut-out whose colours are multiplied by alpha, halved some times by means of 2 × 2 pixels: int32 [h, w, 4]."""
    if times == 0:
        pixels = cut_outs(label)[number].astype(np.int32)
        pixels[..., :3] *= pixels[..., 3:]
        return pixels
    finer = _halved(label, number, times - 1)
    height, width = finer.shape[:2]
    even = np.pad(finer, ((0, height % 2), (0, width % 2), (0, 0)))
    return (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) // 4


def _sampled(pixels: np.ndarray, shown: tuple[int, int], rotation: int) -> np.ndarray:
    """Pixels [h, w, 4], colours multiplied by alpha, at another size and turned: int32 [s, s, 4], colours divided again.

    Args:
        pixels: to sample between, bilinearly.
        shown: width and height before the rotation.
        rotation: k of the module's description.
    """
    height, width = pixels.shape[:2]
    norm, sine, cosine = 1024 + rotation**2, 64 * rotation, 1024 - rotation**2
    side = ((abs(sine) + cosine) * max(shown)) // norm + 2
    # Centres of pixels from the middle, in half pixels; then their places in the source, in fractions of a pixel.
    place = 2 * np.arange(side) + 1 - side
    x, y = place[None, :], place[:, None]
    column = ((cosine * x + sine * y) * _FRACTION * width // (norm * shown[0]) + _FRACTION * (width - 1)) // 2
    row = ((cosine * y - sine * x) * _FRACTION * height // (norm * shown[1]) + _FRACTION * (height - 1)) // 2
    framed = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    right, lower = (column % _FRACTION)[..., None], (row % _FRACTION)[..., None]
    columns = [np.clip(column // _FRACTION + each, 0, width + 1) for each in (1, 2)]
    rows = [np.clip(row // _FRACTION + each, 0, height + 1) for each in (1, 2)]
    # Colours are sums of up to 255 · 255 · 256, below 2²⁴.
    above, below = (
        framed[each, columns[0]] * (_FRACTION - right) + framed[each, columns[1]] * right for each in rows
    )
    mixed = (above * (_FRACTION - lower) + below * lower) // _FRACTION**2
    mixed[..., :3] //= np.maximum(mixed[..., 3:], 1)
    return mixed


def _recoloured(colours: np.ndarray, draws: list[float]) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Colours with another saturation, contrast, brightness and tint: int32 [h, w, 3] -> uint8, and the gains."""
    saturation, contrast, brightness, *tint = draws
    strength = 8 + int(saturation * 57)
    grey = (colours @ np.array([77, 150, 29]) >> 8)[..., None]
    mixed = (colours * strength + grey * (64 - strength)) >> 6
    level = 96 + int(brightness * 65)
    mixed = ((mixed - 128) * (28 + int(contrast * 37)) >> 6) + level
    red, green, blue = (42 + int(channel * 31) for channel in tint)
    return (mixed * np.array([red, green, blue]) >> 6).clip(0, 255).astype(np.uint8), (red, green, blue)
