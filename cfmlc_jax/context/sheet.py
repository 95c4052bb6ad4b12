"""A picture sheet of removals: the photo, what is removed, what is put in its place, and the scores of both."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cfmlc_jax.errors import printable

SIDE = 200  # longer side of a picture, pixels
GAP, LINE, LETTERS = 8, 18, 13
PAPER, INK, HOLE = (255, 255, 255), (24, 26, 32), (213, 94, 0)


@dataclass(frozen=True)
class Row:
    """One removal.

    before: the photo, uint8 [h, w, 3].
    hole: bool [h, w].
    after: uint8 [h, w, 3].
    lines: text beside them.
    """

    before: np.ndarray
    hole: np.ndarray
    after: np.ndarray
    lines: Sequence[str]


def draw(rows: Sequence[Row]) -> bytes:
    """The sheet as a JPEG file, a row for each removal."""
    font = ImageFont.load_default(LETTERS)
    text = max(int(font.getlength(printable(line))) for row in rows for line in row.lines)
    panels = [[_scaled(each) for each in (row.before, _marked(row), row.after)] for row in rows]
    heights = [max(own[0].height, LINE * len(row.lines)) + GAP for own, row in zip(panels, rows, strict=True)]
    canvas = Image.new("RGB", (3 * (SIDE + GAP) + text + GAP, sum(heights) + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    top = GAP
    for own, row, height in zip(panels, rows, heights, strict=True):
        for column, picture in enumerate(own):
            canvas.paste(picture, (GAP + column * (SIDE + GAP), top))
        for number, line in enumerate(row.lines):
            pen.text((GAP + 3 * (SIDE + GAP), top + number * LINE), printable(line), fill=INK, font=font)
        top += height
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=85)
    return file.getvalue()


def _marked(row: Row) -> np.ndarray:
    """The photo with the hole in half a colour."""
    tinted = (row.before.astype(np.uint16) + np.array(HOLE, np.uint16)) // 2
    return np.where(row.hole[..., None], tinted, row.before).astype(np.uint8)


def _scaled(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    factor = SIDE / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)
