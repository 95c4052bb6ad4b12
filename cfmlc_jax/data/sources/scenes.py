"""Scenes composed of real handwritten digits, or of objects cut out of photos, with exact counterfactuals.

A scene contains one to four objects of different classes on a crop of a photo. Classes form pairs of partners (0-1, 2-3,
4-5, 6-7, 8-9), and `bias` controls how often partners appear together. A classifier can therefore learn to rely on context,
and the test splits show whether it does. Every object can be removed from its scene with everything else unchanged,
which is impossible with real photos.

Pixels and labels are functions of the arguments and the index alone, and the same on every machine:
they use integer arithmetic on uniform draws, no transcendental functions and no sums of floats. (Below 64
pixels digits are shrunk so much that Pillow 11 and 13 round differently.)
"""

import functools
import math
import operator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
from PIL import Image

from cfmlc_jax.data.sources import Record, cut_outs, embedded
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.errors import InputError

CLASS_NAMES = tuple(f"digit {digit}" for digit in range(10))
DIGITS, PHOTOS = "digits", "photos"
# What the objects of a scene are -> the names of their classes.
OBJECTS = {DIGITS: CLASS_NAMES, PHOTOS: cut_outs.CLASS_NAMES}
# Split -> default number of scenes; a split's position here selects its random stream.
SPLITS = {"train": 6000, "test_iid": 1000, "test_balanced": 1000, "test_conflict": 1000, "val": 1000}
BIASED = ("train", "val", "test_iid")
# The part of the 500 handwritings of each digit that a split uses.
HANDWRITINGS = {"train": slice(0, 350), "val": slice(350, 400), "test": slice(400, 500)}
TEXTURE_SIZE = 64  # size of a scene, pixels, at which textures are used unscaled
MAX_DIGITS = 5  # a scene of test_conflict contains at most one digit of each of the five pairs
LABEL_STREAM, LOOK_STREAM = 0, 1

BACKGROUND_DRAWS = 9
PLACES = 48  # positions tried for a digit until one is free
COLOURS = 12  # colours tried for a digit until one has enough contrast
OBJECT_DRAWS = 2 + 2 * PLACES + 3 * COLOURS
CONTRAST = 80  # least difference in luma, of 255, between a digit and its background
FAINTEST = 48  # least ink, of 255, at the edges of a digit's box
VISIBLE = [255 if ink >= FAINTEST else 0 for ink in range(256)]

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene.

    label: its class.
    instance: the handwriting of a digit, a row of assets/digits.npz; of a photo's object, its pose (`cut_outs.poses`).
    box: left, top, right, bottom of its mask, pixels, right and bottom exclusive.
    colour: red, green, blue of a digit's full ink, 0 to 255; the gains of a photo's channels, in 64ths.
    """

    label: int
    instance: int
    box: Box
    colour: tuple[int, int, int]

    @property
    def digit(self) -> int:
        """The class, of scenes of digits."""
        return self.label


class _Layer(NamedTuple):
    info: SceneObject
    ink: Image.Image  # grey, the box's size
    paint: (
        Image.Image | tuple[int, int, int]
    )  # what the ink shows: a picture of the box's size, or one colour


class Scenes:
    """Source of `num_scenes` scenes: uint8 [size, size, 3] with labels [10], and boxes and masks of the objects.

    The digits of a scene are drawn as follows. First a number from `min_digits` to `max_digits` is drawn
    uniformly. Then, until the scene has that many digits, a digit is drawn uniformly among the absent ones, and
    its partner joins with probability `bias`, if it is absent and the scene has fewer than `max_digits`. A digit
    appears at most once. At bias 0 all sets of the same size are therefore equally likely:
    partners share a scene exactly as often as any two digits.

    ============= ====== ============= =========== ================== ====================
    split         bias   handwritings  rate of a   P(partner | digit) ratio to rate
                         and photos    digit
    ============= ====== ============= =========== ================== ====================
    train         `bias` train         .295 at .9  .941 at .9         3.19
    val           `bias` val           .295 at .9  .941 at .9         3.19
    test_iid      `bias` test          .295 at .9  .941 at .9         3.19
    test_balanced 0      test          .250        .222               .889, as for any two
    test_conflict none   test          .250        0                  0
    ============= ====== ============= =========== ================== ====================

    Objects of photos are drawn in the same way; "digit" stands for any object here.
    (These values are exact for 1 to 4 digits. .941 is above the bias because an absent partner can still be
    drawn by itself. .889 is below 1 because the number of digits is limited: a present digit leaves less room
    for others.) In test_conflict a drawn digit excludes its partner, so partners never share a scene.

    Of the 500 handwritings of each digit, training scenes use 350, val 50 and the test splits 100.
    Of each photo, train and val use the left three fifths and the test splits the rest. Of the 500 poses of each
    object of a photo, and of the coins, the splits use the same shares (`cut_outs`).

    Args:
        split: train, val, test_iid, test_balanced or test_conflict.
        bias: probability in [0, 1] that a partner joins; used by train, val and test_iid only.
        size: side of the image, pixels, 32 to 512; digits are 9/32 to 13/32 of it.
        num_scenes: number of scenes; default 6000 for train, 1000 for other splits. Scene i is the same for
            every number.
        seed: at least 0; other seeds give other scenes with the same handwritings and photos.
        min_digits: least number of digits in a scene, at least 1.
        max_digits: greatest number of digits in a scene, at most 5.
        objects: digits, or photos for objects that are cut out of photos.

    Raises:
        InputError: a split or kind of objects that does not exist, or a number outside these ranges.
    """

    def __init__(
        self,
        split: str,
        *,
        bias: float = 0.9,
        size: int = 64,
        num_scenes: int | None = None,
        seed: int = 0,
        min_digits: int = 1,
        max_digits: int = 4,
        objects: str = DIGITS,
    ):
        if split not in SPLITS:
            raise InputError(f"scenes: split {split!r} does not exist; {_nearest_split(split)}")
        if objects not in OBJECTS:
            raise InputError(f"scenes: there are no objects {objects!r}; choose one of {', '.join(OBJECTS)}")
        if not 0 <= bias <= 1:
            raise InputError(f"scenes: bias {bias} is not a probability; give a number from 0 to 1")
        self.split = split
        self.kind = objects
        self.class_names = OBJECTS[objects]
        self.bias = float(bias) if split in BIASED else 0.0
        self.size = _whole("size", size, 32, 512)
        self.num_scenes = SPLITS[split] if num_scenes is None else _whole("num_scenes", num_scenes, 1)
        self.seed = _whole("seed", seed, 0)
        self.max_digits = _whole("max_digits", max_digits, 1, MAX_DIGITS)
        self.min_digits = _whole("min_digits", min_digits, 1, self.max_digits)
        self._part = split if split in HANDWRITINGS else "test"
        self._digits = draw_digits(
            self._generator(LABEL_STREAM).random((self.num_scenes, 1 + 2 * self.max_digits)),
            min_digits=self.min_digits,
            bias=self.bias,
            exclusive=split == "test_conflict",
        )
        self.labels = (self._digits[:, :, None] == np.arange(10)).any(axis=1).astype(np.uint8)
        self.ids = [f"{split}-{index:06d}" for index in range(self.num_scenes)]

    def __len__(self) -> int:
        return self.num_scenes

    def __repr__(self) -> str:
        kind = "" if self.kind == DIGITS else f", objects={self.kind!r}"
        return (
            f"Scenes({self.split!r}, bias={self.bias}, size={self.size}, num_scenes={self.num_scenes}, "
            f"seed={self.seed}, min_digits={self.min_digits}, max_digits={self.max_digits}{kind})"
        )

    def __getitem__(self, index: int) -> Record:
        index = self._position(index)
        background, layers = self._scene(index)
        return Record(
            image=_paint(background, layers),
            labels=self.labels[index],
            id=self.ids[index],
            where=f"scene {index} of {self!r}",
        )

    def boxes(self) -> Boxes:
        """The boxes of all objects, scene by scene in the order of `objects`."""
        scenes = [self.objects(index) for index in range(self.num_scenes)]
        objects = [item for scene in scenes for item in scene]
        return Boxes(
            corners=np.array([item.box for item in objects], np.float32).reshape(-1, 4),
            classes=np.array([item.label for item in objects], np.int32),
            images=np.repeat(np.arange(self.num_scenes), [len(scene) for scene in scenes]),
            sizes=np.full((self.num_scenes, 2), self.size, np.int64),
        )

    def objects(self, index: int) -> list[SceneObject]:
        """The scene's n objects, in the order in which they are painted."""
        return [layer.info for layer in self._scene(self._position(index))[1]]

    def painted(self, index: int) -> tuple[np.ndarray, list[SceneObject]]:
        """The scene as uint8 [size, size, 3], and its `objects`."""
        background, layers = self._scene(self._position(index))
        return _paint(background, layers), [layer.info for layer in layers]

    def render(self, index: int, without: int | None = None) -> np.ndarray:
        """The scene as uint8 [size, size, 3], or its counterfactual without one object.

        Outside the removed object's mask the two are equal pixel by pixel. Inside, the counterfactual shows what
        the object covered. Nothing else is drawn again.

        Args:
            index: index of the scene.
            without: index in `objects(index)` of the object to leave out; None paints all.

        Raises:
            InputError: the object does not exist.
        """
        index = self._position(index)
        background, layers = self._scene(index)
        if without is not None:
            if not 0 <= without < len(layers):
                raise InputError(
                    f"{self.ids[index]} has {len(layers)} objects, so there is no object {without}; "
                    f"give 0 to {len(layers) - 1}, or None"
                )
            del layers[without]
        return _paint(background, layers)

    def masks(self, index: int) -> np.ndarray:
        """Pixels that each object's ink touches, even if another object covers them: bool [n, size, size].

        The faintest edges count, so these are all the pixels that the object can have changed.
        """
        layers = self._scene(self._position(index))[1]
        masks = np.zeros((len(layers), self.size, self.size), bool)
        for mask, layer in zip(masks, layers, strict=True):
            left, top, right, bottom = layer.info.box
            mask[top:bottom, left:right] = np.asarray(layer.ink) > 0
        return masks

    def _position(self, index: int) -> int:
        """The index from 0; a negative one counts from the end. Raises IndexError like a list."""
        return range(self.num_scenes)[operator.index(index)]

    def _generator(self, *stream: int) -> np.random.Generator:
        """A PCG64 generator, named explicitly because NumPy may change what `default_rng` returns."""
        key = (list(SPLITS).index(self.split), *stream)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _scene(self, index: int) -> tuple[np.ndarray, list[_Layer]]:
        """A background and the layers to paint on it.

        All random numbers are drawn first, in fixed places, so that no decision shifts the numbers of another.
        """
        random = self._generator(LOOK_STREAM, index)
        setting = random.random(BACKGROUND_DRAWS).tolist()
        draws = random.random((self.max_digits, OBJECT_DRAWS))
        background = _background(_textures(self.kind, self._part, self.size), self.size, setting)
        layers: list[_Layer] = []
        for label, row in zip(self._digits[index].tolist(), draws.tolist(), strict=True):
            if label >= 0:
                taken = [layer.info.box for layer in layers]
                if self.kind == DIGITS:
                    layers.append(self._digit(label, row, background, taken))
                else:
                    layers.append(self._cut_out(label, row, taken))
        return background, layers

    def _digit(self, label: int, draws: list[float], background: np.ndarray, taken: list[Box]) -> _Layer:
        instance = _pick_instance(self._part, label, draws[0])
        ink = _handwriting(instance, self.size, draws[1])
        box = free_place(ink.size, self.size, draws[2 : 2 + 2 * PLACES], taken)
        colour = _stand_out(background, box, draws[2 + 2 * PLACES :])
        return _Layer(SceneObject(label, instance, box, colour), ink, colour)

    def _cut_out(self, label: int, draws: list[float], taken: list[Box]) -> _Layer:
        image, alpha, pose, gains = cut_outs.appearance(self._part, label, self.size, draws[2 * PLACES :])
        box = free_place(alpha.size, self.size, draws[: 2 * PLACES], taken)
        return _Layer(SceneObject(label, pose, box, gains), alpha, image)


def draw_digits(uniforms: np.ndarray, *, min_digits: int, bias: float, exclusive: bool) -> np.ndarray:
    """Digits of n scenes in the order drawn, -1 after the last: uniforms [n, 1 + 2·m] -> int8 [n, m].

    Args:
        uniforms: in [0, 1); for each scene its number of digits, then m times a digit and its partner.
        min_digits: least number of digits, 1 to m.
        bias: probability that a drawn digit's absent partner joins while there is room.
        exclusive: a digit excludes its partner instead.
    """
    scenes, most = len(uniforms), uniforms.shape[1] // 2
    wanted = min_digits + (uniforms[:, 0] * (most - min_digits + 1)).astype(int)
    digits = np.full((scenes, most), -1, np.int8)
    count = np.zeros(scenes, int)
    free = np.ones((scenes, 10), bool)
    for step in range(most):
        rows = np.flatnonzero(count < wanted)
        drawn = _pick_free(free[rows], uniforms[rows, 1 + 2 * step])
        partner = drawn ^ 1
        digits[rows, count[rows]] = drawn
        free[rows, drawn] = False
        count[rows] += 1
        if exclusive:
            free[rows, partner] = False
            continue
        joins = free[rows, partner] & (count[rows] < most) & (uniforms[rows, 2 + 2 * step] < bias)
        rows, partner = rows[joins], partner[joins]
        digits[rows, count[rows]] = partner
        free[rows, partner] = False
        count[rows] += 1
    return digits


def _pick_free(free: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """A random True column of each row, all equally likely: bool [n, k], uniforms [n] -> [n]."""
    rank = (uniform * free.sum(axis=1)).astype(int)
    return (free.cumsum(axis=1) > rank[:, None]).argmax(axis=1)


def _background(textures: tuple[np.ndarray, ...], size: int, draws: list[float]) -> np.ndarray:
    """A background: a flipped crop of a photo with less contrast, other brightness and a tint, uint8 [size, size, 3]."""
    photo, x, y, flip, contrast, brightness, *tint = draws
    texture = textures[int(photo * len(textures))]
    top = int(y * (texture.shape[0] - size + 1))
    left = int(x * (texture.shape[1] - size + 1))
    crop = texture[top : top + size, left : left + size]
    # ((value - 128) · gain + level) · tint of the channel. Fixed point with 64 = 1, on complete rows of
    # interleaved channels, fits into int16, which is several times faster.
    gain = 28 + int(contrast * 25)
    level = 88 + int(brightness * 81)
    tints = [48 + int(channel * 21) for channel in tint]
    scale = np.array([gain * tint >> 6 for tint in tints] * size, np.int16)
    offset = np.array([(level * 64 - 128 * gain) * tint >> 6 for tint in tints] * size, np.int16)
    rows = crop[:: -1 if flip < 0.5 else 1].reshape(size, size * 3).astype(np.int16)
    return ((rows * scale + offset) >> 6).clip(0, 255).astype(np.uint8).reshape(size, size, 3)


def _pick_instance(part: str, digit: int, draw: float) -> int:
    """A random handwriting of a digit in a part of the data, as a row of the assets."""
    rows = instances(part)[digit]
    return rows[int(draw * len(rows))]


def _handwriting(instance: int, size: int, draw: float) -> Image.Image:
    """The ink of a handwriting at a random size: a grey image, 0 for no ink and 255 for full ink."""
    ink = _ink(instance)
    long, least, most = max(ink.size), size * 9 // 32, size * 13 // 32
    side = least + int(draw * (most - least + 1))
    width, height = (max(1, (2 * side * length + long) // (2 * long)) for length in ink.size)
    return ink.resize((width, height), Image.Resampling.BILINEAR)


def free_place(shape: tuple[int, int], size: int, draws: list[float], taken: list[Box]) -> Box:
    """The first drawn box that overlaps no box in `taken`, or else the one with the least overlap."""
    width, height = shape
    least = math.inf
    for x, y in zip(draws[::2], draws[1::2], strict=True):
        left, top = int(x * (size - width + 1)), int(y * (size - height + 1))
        box = (left, top, left + width, top + height)
        shared = sum(_shared_area(box, other) for other in taken)
        if shared < least:
            best, least = box, shared
        if not shared:
            break
    return best


def _shared_area(a: Box, b: Box) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0


def _stand_out(background: np.ndarray, box: Box, draws: list[float]) -> tuple[int, int, int]:
    """The first drawn colour that differs enough from the background in the box, or else the best one.

    It is compared with the background only. If objects behind it counted, removing one of them
    would change this object's colour.
    """
    left, top, right, bottom = box
    area = (right - left) * (bottom - top)
    total = background[top:bottom, left:right].sum(axis=0, dtype=np.int64).sum(axis=0)
    behind = _luma(*(total // area).tolist())
    most = -1
    for red, green, blue in zip(draws[::3], draws[1::3], draws[2::3], strict=True):
        colour = (int(256 * red), int(256 * green), int(256 * blue))
        contrast = abs(_luma(*colour) - behind)
        if contrast > most:
            best, most = colour, contrast
        if contrast >= CONTRAST:
            break
    return best


def _luma(red: int, green: int, blue: int) -> int:
    """Rec. 601 luma in integers, 0 to 255."""
    return (77 * red + 150 * green + 29 * blue) >> 8


def _paint(background: np.ndarray, layers: list[_Layer]) -> np.ndarray:
    """The layers over the background, blended by their ink: uint8 [size, size, 3]."""
    canvas = Image.fromarray(background)
    for layer in layers:
        canvas.paste(layer.paint, layer.info.box, layer.ink)
    return np.array(canvas)


@functools.cache
def _ink(instance: int) -> Image.Image:
    """One handwriting cropped to its visible ink, so that a resized copy fills its box."""
    image = Image.fromarray(digit_images()[0][instance])
    return image.crop(image.point(VISIBLE).getbbox())


@functools.cache
def instances(part: str) -> list[list[int]]:
    """The handwritings of each digit in a part of the data, as rows of the assets: 10 lists."""
    labels = digit_images()[1]
    return [np.flatnonzero(labels == digit)[HANDWRITINGS[part]].tolist() for digit in range(10)]


@functools.cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """All handwritings uint8 [5000, 28, 28] and their digits [5000]."""
    arrays = embedded.arrays("digits.npz")
    return arrays["images"], arrays["labels"]


@functools.cache
def _textures(kind: str, part: str, size: int) -> tuple[np.ndarray, ...]:
    """The photos behind the objects of a part of the data, then their mirror images, at the scene's scale: uint8 [h, w, 3] each.

    They are mirrored once here, because flipping interleaved channels takes half the time of a background.
    """
    region = "test" if part == "test" else "train"
    stored = photos(region) if kind == DIGITS else cut_outs.backgrounds(region)
    scaled = [_scale(photo, size) for photo in stored]
    return (*scaled, *(np.ascontiguousarray(photo[:, ::-1]) for photo in scaled))


def photos(region: str) -> list[np.ndarray]:
    """A region, "train" or "test", of each photo by name: uint8 [h, w, 3], or [h, w] if the photo is grey."""
    arrays = embedded.arrays("textures.npz")
    return [arrays[name] for name in sorted(arrays) if name.endswith(f"_{region}")]


def _scale(photo: np.ndarray, size: int) -> np.ndarray:
    """A photo scaled by `size / TEXTURE_SIZE`, in colour: [h, w] or [h, w, 3] -> [h', w', 3]."""
    height, width = (side * size // TEXTURE_SIZE for side in photo.shape[:2])
    image = Image.fromarray(photo).convert("RGB")
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _whole(name: str, value: int, low: int, high: int | None = None) -> int:
    within = f"at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError as error:
        raise InputError(f"scenes: {name} {value!r} is not a whole number; give one {within}") from error
    if number < low or (high is not None and number > high):
        raise InputError(f"scenes: {name} {number} is out of range; give a whole number {within}")
    return number


def _nearest_split(split: str) -> str:
    near = get_close_matches(str(split), SPLITS, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(SPLITS)}"
