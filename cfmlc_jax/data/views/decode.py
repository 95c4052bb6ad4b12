"""The bytes of an image to RGB pixels, upright where asked for. Host side, Pillow and uint8 throughout."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from cfmlc_jax.data.views import formats, metadata
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


def decode(image: bytes | np.ndarray | Image.Image, where: str, *, exif: bool = False) -> Image.Image:
    """The picture as a Pillow image of mode RGB, uint8 [h, w, 3], at its stored size.

    Grey, palette, CMYK and 16-bit pictures are converted (16 bits are scaled, not clipped);
    transparency is composited on white. Of several frames the first is read.

    Args:
        image: a file's bytes in one of `formats.FORMATS`, or decoded pixels uint8 [h, w], [h, w, 1], [h, w, 3]
            or [h, w, 4] (red, green, blue, alpha), or a Pillow image.
        where: what an error names, such as the file's path.
        exif: turn the picture upright by its EXIF orientation; TIFF files are always turned, as Pillow does and so
            the reference. Boxes do not turn with it.

    Raises:
        InputError: empty, truncated or damaged bytes, not an image, more than `MAX_PIXELS`, or
            pixels of a kind that has no meaning in 8 bits.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image, where), where)
    if isinstance(image, Image.Image):
        _check_area(*image.size, where)
        picture, orientation = image, _orientation(image) if exif else metadata.UPRIGHT
    else:
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
    return picture, _orientation(picture, stripped.exif, stripped.xmp)


def _orientation(picture, exif=b"", xmp=b""):
    return metadata.orientation(exif or _left_in(picture, "exif"), xmp or _left_in(picture, "xmp"))


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


def _damaged(image, where, error):
    size = f"; the file has {len(image)} bytes" if isinstance(image, bytes) else ""
    return InputError(
        f"{where}: the image cannot be decoded ({_reason(error)}{size}); "
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
