"""Outlines of COCO's objects as masks: polygons, and run lengths, plain or compressed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels inside an annotation's "segmentation": bool [h, w]; None if it holds no usable outline.

    Args:
        segmentation: polygons [[x, y, x, y, …], …]; or {"size": [h, w], "counts": [n, …] or text}.
        size: width and height of the picture; an outline by run lengths must have them.
    """
    if isinstance(segmentation, list):
        return _polygons(segmentation, size)
    if isinstance(segmentation, dict):
        return _runs(segmentation, size)
    return None


def _polygons(polygons: list, size: tuple[int, int]) -> np.ndarray | None:
    picture = Image.new("1", size)
    pen = ImageDraw.Draw(picture)
    drawn = False
    for polygon in polygons:
        if isinstance(polygon, list) and len(polygon) >= 6 and all(_is_number(each) for each in polygon):
            pen.polygon(list(zip(polygon[::2], polygon[1::2])), fill=1)
            drawn = True
    return np.asarray(picture).copy() if drawn else None


def _runs(segmentation: dict, size: tuple[int, int]) -> np.ndarray | None:
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    width, height = size
    if segmentation.get("size") != [height, width] or not isinstance(counts, Sequence):
        return None
    if not all(_is_number(count) and count >= 0 for count in counts) or sum(counts) != height * width:
        return None
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, np.array(counts, np.int64)).reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Run lengths of COCO's text: groups of five bits from the lowest, and from the fourth run on differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
