"""Pillow's resize with bounded memory, and a faster version of its bilinear doubling."""

import numpy as np
from PIL import Image

# Rows processed at a time, so that temporary arrays stay in the processor's cache.
_ROWS = 32
# Greatest number of pixels, of four bytes each, between the two passes of a resize.
_MAX_BETWEEN = 2**24


def to_square(image: Image.Image, size: int, filter: Image.Resampling) -> Image.Image:
    """The image squeezed to a square, bit-identical to ``resize`` except for very high images: RGB -> RGB [size, size].

    Before version 13 Pillow resizes rows first, which takes gigabytes for an image a few pixels wide and
    100,000 high. Such images are resized along columns first, which needs little memory but may round a value
    up instead of down.
    """
    if image.width < size and size * image.height > _MAX_BETWEEN:
        image = image.resize((image.width, size), filter)
    return image.resize((size, size), filter)


def double(image: Image.Image) -> Image.Image:
    """The image at twice its size, bit-identical to ``resize(..., BILINEAR)``: RGB [h, w] -> RGB [2h, 2w].

    When doubling, the triangle filter has only the weights 3/4 and 1/4, and copies pixels at the border.
    Pillow computes fixed-point products per pixel; a few vector operations on bytes give the same. Like
    Pillow, this processes rows first and rounds after each direction.
    """
    width, height = image.size
    # Four bytes per pixel, Pillow's own layout of RGB, so that conversions are plain copies.
    pixels = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(height, 4 * width)
    wide = np.empty((height, width, 2), np.uint32)
    wide[:, 0, 0] = pixels[:, :4].view(np.uint32)[:, 0]
    wide[:, -1, 1] = pixels[:, -4:].view(np.uint32)[:, 0]
    left, right = np.empty((2, height, 4 * (width - 1)), np.uint8)
    _between(pixels[:, :-4], pixels[:, 4:], left, right)
    wide[:, :-1, 1] = left.view(np.uint32)
    wide[:, 1:, 0] = right.view(np.uint32)

    rows = wide.view(np.uint8).reshape(height, 8 * width)
    tall = np.empty((height, 2, 8 * width), np.uint8)
    tall[0, 0] = rows[0]
    tall[-1, 1] = rows[-1]
    _between(rows[:-1], rows[1:], tall[:-1, 1], tall[1:, 0])
    return Image.frombytes("RGB", (2 * width, 2 * height), tall.data, "raw", "RGBX")


def _between(first, second, near_first, near_second):
    """Write the two samples between neighbours, (3 first + second + 2) // 4 and its mirror image.

    All arrays are uint8 [rows, bytes]. Two means suffice, and neither exceeds eight bits: the mean rounded
    down is ``low = (a & b) + ((a ^ b) >> 1)``, and the mean of that and the nearer neighbour, rounded up,
    is ``(low | a) - ((low ^ a) >> 1)``.
    """
    for start in range(0, len(first), _ROWS):
        rows = slice(start, start + _ROWS)
        a, b = first[rows], second[rows]
        low = a & b
        half = a ^ b
        half >>= 1
        low += half
        for near, out in ((a, near_first), (b, near_second)):
            half = low ^ near
            half >>= 1
            np.subtract(low | near, half, out=out[rows])
