"""Transforms from a record to one view for single-label classifiers: crops, flips and colour jitter.

The reference's transforms (Tang et al., NeurIPS 2020), which are torchvision's: Pillow and uint8, one
generator per record. Both are called like `patches.ToViews`.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.data.views.resample import to_square
from cfmlc_jax.errors import InputError

# Ranges of `random_box`: share of the image's area, and width divided by height.
AREAS, ASPECTS = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10
# Greatest ratio of the longer side to the shorter in `middle`; longer images are cut before they are scaled.
_MAX_ASPECT = 16


@dataclasses.dataclass(frozen=True)
class PaddedCrop:
    """A small image unchanged; in training padded with black margins, randomly cropped and flipped.

    For CIFAR: 32 px, margins of 4.

    size: side of the images and of the view, pixels.
    padding: margin on each side, pixels.
    flip: whether images are mirrored with probability ½ (not for digits, which this would change).
    augment: True in training.
    exif: turn images upright by their EXIF orientation.
    """

    size: int = 32
    padding: int = 4
    flip: bool = True
    augment: bool = False
    exif: bool = False
    # As in `ToViews`.
    grid = None
    num_views = 1

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The image as the only view, RGB [size, size]; an image of another size is squeezed."""
        return [to_square(image, self.size, Image.Resampling.BILINEAR)]

    def __call__(self, record: Record, generator: np.random.Generator | None = None) -> dict:
        """{"views": uint8 [1, size, size, 3], "labels": float32 [k], "id": str} of one record.

        Args:
            record: a source's record.
            generator: the record's random generator; used only for augmentation.

        Raises:
            InputError: `decode` refuses the image, or the image has another size.
            TypeError: augmentation without a generator.
        """
        image = _decoded(self, record, generator)
        if image.size != (self.size, self.size):
            raise InputError(
                f"{_where(record)}: {image.width} x {image.height} pixels, wanted {self.size} x {self.size}; "
                "set config.views.image_size to the data's, or config.views.transform to 'area_crop'"
            )
        if generator is not None and self.augment:
            left, top = generator.integers(0, 2 * self.padding + 1, 2).tolist()
            image = ImageOps.expand(image, self.padding).crop((left, top, left + self.size, top + self.size))
            image = random_flip(image, generator) if self.flip else image
        return _example(image, record)


@dataclasses.dataclass(frozen=True)
class AreaCrop:
    """The centre crop of a photo; in training a random crop, flipped at random and with jittered colours.

    For ImageNet-LT and Places-LT: 224 px. In evaluation the shorter side is scaled to 8/7 of the size
    (256) and the centre is cropped. In training `random_box` is cropped and mirrored with probability ½; then
    brightness, contrast and saturation are changed, in random order, each by a factor in 1 ± `jitter`.

    size: side of the view, pixels.
    flip: whether images are mirrored with probability ½.
    jitter: strength of the colour changes; 0: none, as in the reference for iNaturalist.
    augment: True in training.
    exif: turn images upright by their EXIF orientation.
    """

    size: int = 224
    flip: bool = True
    jitter: float = 0.4
    augment: bool = False
    exif: bool = False
    # As in `ToViews`.
    grid = None
    num_views = 1

    @property
    def shorter_side(self) -> int:
        """To what the shorter side is scaled in evaluation, pixels."""
        return _shorter_side(self.size)

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The centre crop of the image as the only view, RGB [size, size]."""
        return [middle(image, self.size)]

    def __call__(self, record: Record, generator: np.random.Generator | None = None) -> dict:
        """As `PaddedCrop.__call__`; images may have any size."""
        image = _decoded(self, record, generator)
        if generator is not None and self.augment:
            box = random_box(image.width, image.height, generator)
            view = image.crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)
            view = random_flip(view, generator) if self.flip else view
            view = jitter_colours(view, self.jitter, generator)
        else:
            (view,) = self.cut(image)
        return _example(view, record)


def random_box(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random crop, pixels, as in torchvision's RandomResizedCrop.

    Its share of the image's area is uniform in `AREAS`, its aspect log-uniform in `ASPECTS`. If it does not fit
    it is drawn again, at most ten times; then it is a centre crop, as wide or as high as the aspects allow.
    """
    for _ in range(_TRIES):
        area = width * height * generator.uniform(*AREAS)
        aspect = math.exp(generator.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = generator.integers(0, (width - w + 1, height - h + 1)).tolist()
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECTS[1]))
    h = min(height, round(width / ASPECTS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_flip(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The image, or, with probability ½, its mirror image."""
    return ImageOps.mirror(image) if generator.random() < 0.5 else image


def jitter_colours(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """The image with brightness, contrast and saturation changed in random order, by factors in 1 ± strength.

    As torchvision's ColorJitter without hue. A strength of 0 uses no random numbers.
    """
    if not strength:
        return image
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = generator.uniform(max(0, 1 - strength), 1 + strength, len(kinds)).tolist()
    for place in generator.permutation(len(kinds)).tolist():
        image = kinds[place](image).enhance(factors[place])
    return image


def middle(image: Image.Image, size: int) -> Image.Image:
    """The centre crop of an image scaled so that its shorter side is 8/7 of the size: RGB [size, size].

    If the longer side is more than 16 times the shorter, the ends are cut off first. This limits memory; only the
    position of the centre may be rounded differently.
    """
    image = _without_ends(image)
    shorter = _shorter_side(size)
    width, height = image.size
    if width <= height:
        scaled = (shorter, int(shorter * height / width))
    else:
        scaled = (int(shorter * width / height), shorter)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _shorter_side(size):
    return size * 8 // 7


def _without_ends(image):
    width, height = image.size
    # The same at both ends, so that the centre stays in place.
    left = max(0, (width - _MAX_ASPECT * height) // 2)
    top = max(0, (height - _MAX_ASPECT * width) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _decoded(transform, record, generator):
    if transform.augment and generator is None:
        raise TypeError("augmentation needs a generator")
    return decode(record["image"], _where(record), exif=transform.exif)


def _where(record):
    return record.get("where", record["id"])


def _example(view, record):
    return {
        "views": np.array(view)[None],
        "labels": np.asarray(record["labels"], np.float32),
        "id": record["id"],
    }
