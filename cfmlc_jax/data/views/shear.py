"""Shears and the smoothing filter of RandAugment, bit-identical to Pillow's and several times as fast."""

import numpy as np
from PIL import Image

# Bits after the binary point of the weights: the greatest value that they give, 319, still fits 32 bits.
_BITS = 22
_ONE = 1 << _BITS
# Values so near to an integer that rounding the weights may have moved them over it.
_NEAR = 1 << 11
# Rows processed at a time, so that temporary arrays stay in the processor's cache.
_ROWS = 32


def shear_x(image: Image.Image, slope: float, fill: int) -> Image.Image:
    """The image with row y moved left by slope · (y + ½) pixels, bicubic: RGB [h, w] -> RGB [h, w].

    Bit-identical to ``transform(size, AFFINE, (1, slope, 0, 0, 1, 0), BICUBIC, fillcolor=(fill, fill, fill))``.
    Pillow interpolates along both axes, in float64 and pixel by pixel. But in a row all pixels have the same weights,
    and between rows nothing is interpolated. Here each row's four weights are fixed-point numbers. Where these cannot
    tell on which side of an integer Pillow's value is, that is computed as Pillow does.
    """
    pixels = np.asarray(image)
    height, width, channels = pixels.shape
    moved = slope * (np.arange(height) + 0.5)
    whole = np.floor(moved)
    weights = _weights(moved - whole)
    shifts = np.clip(whole, -width - 1, width + 1).astype(int)  # further away all is filled
    # Arrays [rows, columns · channels], so that operations are along one long axis.
    size = width * channels
    at = [slice(k * channels, k * channels + size) for k in range(4)]
    flat = pixels.reshape(height, size)
    sheared = np.empty_like(flat)
    uncertain = []
    for start in range(0, height, _ROWS):
        rows = slice(start, start + _ROWS)
        taps = _taps(flat[rows], shifts[rows], channels)
        wide = taps.astype(np.int32)
        total = wide[:, at[0]] * weights[0][rows]
        for k in range(1, 4):
            total += wide[:, at[k]] * weights[k][rows]
        values = (total >> _BITS).astype(np.int16)
        np.clip(values, 0, 255, out=sheared[rows], casting="unsafe")
        # Equal pixels give just their value; of others no integer is certain.
        steps = taps[:, channels:] != taps[:, :-channels]
        unequal = steps[:, at[0]] | steps[:, at[1]]
        unequal |= steps[:, at[2]]
        total += _NEAR
        total &= _ONE - 1
        unequal &= total < 2 * _NEAR
        uncertain.append(start * size + np.flatnonzero(unequal))
    places = np.concatenate(uncertain)
    y, column = np.divmod(places, size)
    sheared.reshape(-1)[places] = _as_pillow(pixels, moved[y], y, *np.divmod(column, channels))
    for row, left, right in zip(sheared, *_inside(moved, width)):
        row[: left * channels] = row[right * channels :] = fill
    return Image.fromarray(sheared.reshape(pixels.shape))


def shear_y(image: Image.Image, slope: float, fill: int) -> Image.Image:
    """The image with column x moved up by slope · (x + ½) pixels; otherwise as `shear_x`."""
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    return shear_x(turned, slope, fill).transpose(Image.Transpose.TRANSPOSE)


def _weights(d):
    """Weights of the pixels around a place, which is a fraction d [n] behind the second: four of int32 [n, 1]."""
    first = np.rint(_ONE * d * (-1 + d * (2 - d)))
    third = np.rint(_ONE * d * (1 + d * (1 - d)))
    fourth = np.rint(_ONE * d * d * (d - 1))
    return [
        weight.astype(np.int32)[:, None] for weight in (first, _ONE - first - third - fourth, third, fourth)
    ]


def _taps(rows, shifts, channels):
    """From one pixel before each row's shift to two behind its end; edges are repeated: [n, (w + 3) · c]."""
    size = rows.shape[1]
    taps = np.empty((len(rows), size + 3 * channels), np.uint8)
    for row, own, shift in zip(taps, rows, shifts.tolist()):
        first = (shift - 1) * channels  # where the first tap is
        begin, end = min(max(-first, 0), row.size), min(max(size - first, 0), row.size)
        row[begin:end] = own[first + begin : first + end]
        if begin:
            row[:begin].reshape(-1, channels)[:] = own[:channels]
        if end < row.size:
            row[end:].reshape(-1, channels)[:] = own[-channels:]
    return taps


def _inside(moved, width):
    """The first column of each row that comes from inside the image, and the one behind the last: two lists [h]."""
    left = np.ceil(-moved - 0.5)
    # Sums are rounded, as Pillow's, so the column is found by trying.
    right = np.floor(width - 0.5 - moved) - 1
    right += sum(((right + i) + 0.5) + moved < width for i in range(3))
    return [bound.clip(0, width).astype(int).tolist() for bound in (left, right)]


def _as_pillow(pixels, moved, y, x, channel):
    """The values at some places as Pillow computes them, in the same order of the same float64 operations."""
    position = (x + 0.5) + moved - 0.5
    before = np.floor(position)
    d = position - before
    places = before.astype(int) + np.arange(-1, 3)[:, None]
    a, b, c, e = pixels[y, places.clip(0, pixels.shape[1] - 1), channel].astype(np.float64)
    value = b + d * ((c - a) + d * ((2 * (a - b) + c - e) + d * (-a + b - c + e)))
    return value.clip(0, 255).astype(np.uint8)


def smooth(image: Image.Image) -> Image.Image:
    """The mean of 3 × 3 pixels, the middle one counted five times; the border is unchanged: RGB [h, w] -> RGB [h, w].

    Bit-identical to ``filter(ImageFilter.SMOOTH)``, which adds thirteenths in float32. Thirteenths are never half an
    integer, so that whole numbers round alike.
    """
    pixels = np.asarray(image)
    smoothed = pixels.copy()
    height, width, channels = pixels.shape
    if min(height, width) < 3:
        return image.copy()
    flat = pixels.reshape(height, width * channels)
    out = smoothed.reshape(height, width * channels)
    inner = slice(channels, -channels)
    for start in range(1, height - 1, _ROWS):
        end = min(start + _ROWS, height - 1)
        wide = flat[start - 1 : end + 1].astype(np.uint16)
        column = wide[:-2] + wide[1:-1]
        column += wide[2:]
        total = column[:, : -2 * channels] + column[:, inner]
        total += column[:, 2 * channels :]
        middle = wide[1:-1, inner]
        middle *= 4
        total += middle
        total += 6
        total //= 13
        out[start:end, inner] = total
    return Image.fromarray(smoothed)
