"""From a record to views: decode, cut, augment. Host side, Pillow and uint8 throughout.

Pixels are those of the reference bit for bit (REFERENCE: MLC-PAT's TransformPatch); what is left
out has no effect downstream: it shuffles the patches, and they are combined symmetrically.
"""

import dataclasses
import io
import struct
import zlib
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cfmlc_jax.causal.views import Grid, cells
from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.views import formats, metadata
from cfmlc_jax.data.views.randaugment import augment
from cfmlc_jax.data.views.resample import double, to_square
from cfmlc_jax.errors import InputError

# More is taken for a decompression bomb. Pillow's own default limit, from where it only warns.
MAX_PIXELS = 89_478_485
# By EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The box of `cutout` has this fraction of a training view's side.
CUTOUT = 0.5

# What Pillow's readers raise on damaged files, by experiment; they have no common base class.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode(image: bytes | np.ndarray, where: str, *, exif: bool = False) -> Image.Image:
    """The picture as a Pillow image of mode RGB, uint8 [h, w, 3], at its stored size.

    Grey, palette, CMYK and 16-bit pictures are converted (16 bits are scaled, not clipped);
    transparency is composited on white. Of several frames the first is read.

    Args:
        image: a file's bytes in one of `formats.FORMATS`, or decoded pixels uint8 [h, w], [h, w, 1], [h, w, 3]
            or [h, w, 4] (red, green, blue, alpha).
        where: what an error names, such as the file's path.
        exif: turn the picture upright by its EXIF orientation; TIFF files are always turned, as Pillow does and so
            the reference. Boxes do not turn with it.

    Raises:
        InputError: empty, truncated or damaged bytes, not an image, more than `MAX_PIXELS`, or
            pixels of a kind that has no meaning in 8 bits.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image, where), where)
    picture, orientation = header(image, where, exif=exif)
    try:
        picture.load()
    except _DAMAGED as error:
        raise _damaged(image, where, error) from error
    turn = _TURNS.get(orientation)
    return _to_rgb(picture if turn is None else picture.transpose(turn), where)


def header(data: bytes, where: str, *, exif: bool) -> tuple[Image.Image, int]:
    """A file's picture, its pixels not decoded yet, and by which EXIF orientation it is to be turned then.

    Only the orientation is read of the file's metadata, and nothing else in it matters.

    Args:
        data: the file.
        where: what an error names.
        exif: as of `decode`; False: nothing but TIFF files has to be turned.

    Raises:
        InputError: as `decode`.
    """
    if not len(data):
        raise InputError(
            f"{where}: the file is empty (0 bytes); fetch it again or leave it out of the data set"
        )
    stripped = metadata.strip(data)
    try:
        picture = Image.open(io.BytesIO(stripped.data), formats=formats.FORMATS)
    except Image.UnidentifiedImageError:
        raise InputError(f"{where}: {_not_an_image(data)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{where}: {_reason(error)}; scale the image down to {MAX_PIXELS} pixels") from error
    except _DAMAGED as error:
        raise _damaged(data, where, error) from error
    # Before the pixels are decoded, and so before their memory is taken.
    _check_area(*picture.size, where)
    if not (exif or picture.format == "TIFF"):
        return picture, metadata.UPRIGHT
    exif_data = stripped.exif or _left_in(picture, "exif")
    return picture, metadata.orientation(exif_data, stripped.xmp or _left_in(picture, "xmp"))


def _left_in(picture, key):
    """Metadata that stayed in the file, which Pillow finds without looking into it."""
    found = picture.info.get(key)
    return found if isinstance(found, bytes) else b""


def _not_an_image(data):
    return formats.refusal("", data[: formats.HEAD_BYTES]) or (
        f"{len(data)} bytes that are not an image ({', '.join(formats.FORMATS)} are read); "
        "convert the file or leave it out of the data set"
    )


def _from_array(pixels, where):
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not known or not pixels.size:
        raise InputError(
            f"{where}: an array {pixels.dtype} {list(pixels.shape)} is not an image; give uint8 [h, w, 3]"
        )
    _check_area(pixels.shape[1], pixels.shape[0], where)
    return Image.fromarray(pixels)


def _damaged(data, where, error):
    return InputError(
        f"{where}: the image cannot be decoded ({_reason(error)}; the file has {len(data)} bytes); "
        "fetch it again or leave it out of the data set"
    )


def _reason(error):
    # Pillow's messages may be empty or have several lines.
    return " ".join(str(error).split()) or type(error).__name__


def _check_area(width, height, where):
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{where}: {width} x {height} pixels are more than {MAX_PIXELS}; scale the image down to that"
        )


def _to_rgb(picture, where):
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _to_eight_bits(picture, where)
    if picture.has_transparency_data:
        return _on_white(picture)
    # `convert` copies even what is RGB already.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _to_eight_bits(picture, where):
    """Grey of mode L from 16-bit integers (0 to 65535) or floats (0 to 1)."""
    samples = np.asarray(picture)
    top = 1.0 if picture.mode == "F" else 65535.0
    low, high = samples.min(), samples.max()
    if not (low >= 0 and high <= top):  # also when they are NaN
        raise InputError(
            f"{where}: grey values from {low} to {high} (mode {picture.mode}) are outside 0 to {top:g}; "
            "save the image with 8 or 16 bits"
        )
    grey = np.rint(samples * (255 / top)).astype(np.uint8)
    clear = picture.info.get("transparency")
    if clear is not None:
        grey[samples == clear] = 255
    return Image.fromarray(grey)


def _on_white(picture):
    if picture.mode == "La":  # premultiplied; Pillow knows only this one way out of it
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    canvas = Image.new("RGB", picture.size, (255, 255, 255))
    canvas.paste(picture, mask=picture)
    return canvas


def split_views(image: Image.Image, size: int, grid: Grid | None, overlap: float = 0.0) -> list[Image.Image]:
    """The whole view and then the patches, each RGB [size, size]; no grid, no patches.

    Whole: bilinear, antialiased, whatever the aspect. Patches: the image is made size x size with a
    *bicubic* filter, cut along `causal.views.cells` (columns outside, rows inside), and each cell
    is brought back to size x size, bilinear. Every view is its own image: the reference's resize
    hands back its argument where nothing is to be resized, so that its in-place cutout of the
    whole view showed in all patches.

    Raises:
        ValueError: a grid that `cells` refuses.
    """
    views = [to_square(image, size, Image.Resampling.BILINEAR)]
    if grid is not None:
        base = to_square(image, size, Image.Resampling.BICUBIC)
        views += [_enlarge(base.crop(cell), size) for cell in cells(size, grid, overlap)]
    return views


def _enlarge(patch, size):
    if patch.width * 2 == size:  # a 2 x 2 grid: the same pixels, sooner
        return double(patch)
    return patch.resize((size, size), Image.Resampling.BILINEAR)


def cutout(view: Image.Image, fraction: float, generator: np.random.Generator) -> Image.Image:
    """The view with a box covered in one colour, centre and colour uniform: RGB [h, w] -> RGB [h, w]."""
    centre = generator.integers(0, (view.height, view.width))
    colour = generator.integers(0, 256, 3)
    return cover(view, (int(centre[0]), int(centre[1])), tuple(colour.tolist()), fraction)


def cover(
    view: Image.Image, centre: tuple[int, int], colour: tuple[int, int, int], fraction: float
) -> Image.Image:
    """A copy of the view with a box of a fraction of its sides in one colour: RGB [h, w] -> RGB [h, w].

    The box has ``2 * (int(fraction * side + 0.5) // 2) + 1`` pixels (its far edge is painted), less
    what lies outside. x is measured against the height and y against the width, as in the
    reference: the same for our square views, and bit for bit also for others.

    Args:
        view: uint8 RGB.
        centre: (x, y) pixels.
        colour: (red, green, blue), 0 to 255.
        fraction: of the view's sides, 0 to 1.
    """
    left, right = _span(centre[0], view.height, fraction)
    top, bottom = _span(centre[1], view.width, fraction)
    covered = view.copy()
    covered.paste(colour, (left, top, right + 1, bottom + 1))
    return covered


def _span(centre, side, fraction):
    half = int(fraction * side + 0.5) // 2
    return max(centre - half, 0), min(centre + half, side)


class Transform(Protocol):
    """From a record to views: `ToViews`, `crops.PaddedCrop` or `crops.AreaCrop`."""

    @property
    def size(self) -> int:
        """Side of a view, pixels."""

    @property
    def grid(self) -> Grid | None:
        """Patches along one side, or several such; None for the whole view only."""

    @property
    def num_views(self) -> int:
        """v."""

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The views of a picture of any size as evaluation sees it: v of RGB [size, size]."""

    def __call__(self, record: Record, generator: np.random.Generator | None = None) -> dict[str, Any]:
        """{"views": uint8 [v, size, size, 3], "labels": float32 [k], "id": str} of one record."""


@dataclasses.dataclass(frozen=True)
class ToViews:
    """A record's views and labels, ready to be batched.

    size: side of a view, pixels.
    grid: patches along one side, or several such; None for the whole view only.
    overlap: shared fraction of neighbouring patches' sides, [0, 1).
    augment: cutout and RandAugment on every view separately (training).
    exif: turn pictures upright by their EXIF orientation.

    Raises:
        ValueError: a size or grid without pixels, from the constructor.
    """

    size: int
    grid: Grid | None = None
    overlap: float = 0.0
    augment: bool = False
    exif: bool = False

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size {self.size} has no pixels")
        if self.grid is not None:
            cells(self.size, self.grid, self.overlap)

    @property
    def num_views(self) -> int:
        """v: the whole and its patches."""
        return 1 + (0 if self.grid is None else len(cells(self.size, self.grid, self.overlap)))

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The whole view and its patches, each RGB [size, size], without augmentation."""
        return split_views(image, self.size, self.grid, self.overlap)

    def __call__(self, record: Record, generator: np.random.Generator | None = None) -> dict:
        """{"views": uint8 [v, size, size, 3], "labels": float32 [k], "id": str} of one record.

        Args:
            record: as its source gives it.
            generator: the record's own; read only to augment.

        Raises:
            InputError: an image that `decode` refuses.
            TypeError: augmentation without a generator.
        """
        if self.augment and generator is None:
            raise TypeError("augmentation needs a generator")
        image = decode(record["image"], record.get("where", record["id"]), exif=self.exif)
        images = self.cut(image)
        views = np.empty((len(images), self.size, self.size, 3), np.uint8)
        for row, view in zip(views, images):
            if generator is not None and self.augment:
                view = augment(cutout(view, CUTOUT, generator), generator)
            row[...] = np.asarray(view)
        return {"views": views, "labels": np.asarray(record["labels"], np.float32), "id": record["id"]}
