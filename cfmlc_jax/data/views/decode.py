"""Decoding of image files to RGB pixels, optionally turned upright. On the host, with Pillow and uint8."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from cfmlc_jax.data.views import formats, metadata
from cfmlc_jax.errors import InputError

# Images with more pixels are refused as decompression bombs. At this limit, its default, Pillow only warns.
MAX_PIXELS = 89_478_485
# EXIF orientation -> how to turn the image; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Exceptions that Pillow's readers raise on damaged files, found by experiment; they have no common base class.
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
    """The image as a Pillow image of mode RGB, uint8 [h, w, 3], at its stored size.

    Grey, palette, CMYK and 16-bit images are converted (16 bits are scaled, not clipped), and
    transparent pixels are blended with white. Of several frames the first is read.

    Args:
        image: a file's bytes in one of `formats.FORMATS`, or decoded pixels uint8 [h, w], [h, w, 1], [h, w, 3]
            or [h, w, 4] (red, green, blue, alpha), or a Pillow image.
        where: how error messages name the image, for example its path.
        exif: turn the image upright by its EXIF orientation. TIFF files are always turned, as Pillow and hence
            the reference do. Boxes are not turned.

    Raises:
        InputError: the bytes are empty, truncated, damaged or not an image; there are more than `MAX_PIXELS`;
            or pixel values have no meaning in 8 bits.
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
    """A file's image without decoded pixels, and the EXIF orientation by which it must be turned.

    Of the file's metadata only the orientation is read.

    Args:
        data: the file's bytes.
        where: how error messages name the image.
        exif: as for `decode`; False: only TIFF files are turned.

    Raises:
        InputError: as `decode`.
    """
    if not len(data):
        raise InputError(
            f"{where}: the file is empty (0 bytes); download it again or remove it from the data set"
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
    # Checked before pixels are decoded and their memory is allocated.
    _check_area(*picture.size, where)
    if not (exif or picture.format == "TIFF"):
        return picture, metadata.UPRIGHT
    return picture, _orientation(picture, stripped.exif, stripped.xmp)


def _orientation(picture, exif=b"", xmp=b""):
    return metadata.orientation(exif or _metadata(picture, "exif"), xmp or _metadata(picture, "xmp"))


def _metadata(picture, key):
    """Metadata that `metadata.strip` left in the file, as bytes that Pillow has not parsed; empty without any."""
    value = picture.info.get(key)
    return value if isinstance(value, bytes) else b""


def _not_an_image(data):
    return formats.refusal("", data[: formats.HEAD_BYTES]) or (
        f"{len(data)} bytes that are not an image ({', '.join(formats.FORMATS)} are supported); "
        "convert the file or remove it from the data set"
    )


def _from_array(pixels, where):
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not known or not pixels.size:
        raise InputError(
            f"{where}: an array {pixels.dtype} {list(pixels.shape)} is not an image{_range(pixels)}; give uint8 [h, w, 3]"
            f"{_conversion(pixels)}"
        )
    _check_area(pixels.shape[1], pixels.shape[0], where)
    return Image.fromarray(pixels)


def _range(pixels) -> str:
    """The range of an array's values, for an error; empty for pixels of the right type, and for what are no numbers."""
    if pixels.dtype == np.uint8 or pixels.dtype.kind not in "fiu" or not pixels.size:
        return ""
    return f" (values from {pixels.min():g} to {pixels.max():g})"


def _conversion(pixels) -> str:
    """How an array may become an image, for an error; empty where that is not clear."""
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] > 4:
        return ", for example by array.transpose(1, 2, 0)"
    if pixels.dtype == np.uint8 or pixels.dtype.kind not in "fiu" or not pixels.size:
        return ""
    low, high = pixels.min(), pixels.max()
    if pixels.dtype.kind == "f" and low >= 0 and high <= 1:
        return ", for example (255 * array).round().astype('uint8')"
    if low >= 0 and 1 < high <= 255:
        return ", for example array.round().astype('uint8')"
    return " with values from 0 to 255"


def _damaged(image, where, error):
    size = f"; the file has {len(image)} bytes" if isinstance(image, bytes) else ""
    return InputError(
        f"{where}: the image cannot be decoded ({_reason(error)}{size}); "
        "download it again or remove it from the data set"
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
    # `convert` would copy even an RGB image.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _to_eight_bits(picture, where):
    """A grey image of mode L, from 16-bit integers (0 to 65535) or floats (0 to 1)."""
    samples = np.asarray(picture)
    top = 1.0 if picture.mode == "F" else 65535.0
    low, high = samples.min(), samples.max()
    if not (low >= 0 and high <= top):  # also True for NaN
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
    if picture.mode == "La":  # premultiplied alpha, which Pillow converts to LA only
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    canvas = Image.new("RGB", picture.size, (255, 255, 255))
    canvas.paste(picture, mask=picture)
    return canvas
