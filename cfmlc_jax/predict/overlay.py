"""Pictures of the patches' weights: the photo, and beside it a copy for each of its top classes.

A class's copy fades where its patches weigh little; its pivot patch has a frame, if it has one.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from cfmlc_jax.causal.views import Box
from cfmlc_jax.errors import printable
from cfmlc_jax.results.pivots import FADED, pivot_of, weight_text

NARROWEST = 240  # panel, so that its text fits beside a slim photo
MARGIN, GAP = 20, 28
HEADER, FOOTER = 62, 66
TITLE, TEXT, SMALL = 28, 21, 18  # font sizes, pixels
PAPER, INK, FAINT, RULE = (255, 255, 255), (24, 26, 32), (104, 110, 122), (226, 229, 235)
# By rank; distinguishable for colour-blind readers (Okabe and Ito).
ACCENTS = ((213, 94, 0), (0, 114, 178), (0, 138, 102))
LONGEST_NAME = 200  # bytes of a file's stem; what is written temporarily has a longer name


@dataclass(frozen=True)
class ClassView:
    """What a panel shows of a class.

    weights: of the p patches, as in `ImageScores`.
    effect: factual − counterfactual logit.
    """

    name: str
    probability: float
    weights: Sequence[float]
    effect: float


def draw(
    photo: Image.Image,
    title: str,
    notes: tuple[str, str],
    classes: Sequence[ClassView],
    patch_boxes: Sequence[Box],
    size: int,
) -> Image.Image:
    """The photo with a panel for each class to its right: RGB.

    Args:
        photo: RGB, as `scaled` gives it.
        title: above the photo.
        notes: two lines below the photo.
        classes: up to `MAX_PANELS`.
        patch_boxes: boxes of the p patches in an image of `size` pixels a side.
        size: of those boxes.
    """
    boxes = [_on_photo(box, photo.size, size) for box in patch_boxes]
    panels = [_photo_panel(photo, title, notes)]
    panels += [_class_panel(photo, shown, boxes, accent) for shown, accent in zip(classes, ACCENTS)]
    width, height = panels[0].size
    canvas = Image.new("RGB", (2 * MARGIN + len(panels) * (width + GAP) - GAP, height + 2 * MARGIN), PAPER)
    for i, panel in enumerate(panels):
        canvas.paste(panel, (MARGIN + i * (width + GAP), MARGIN))
    return canvas


def file_names(paths: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """A file name for each path's picture: its own stem where that is free, else with a number.

    Args:
        paths: images.
        taken: names that are not free.
    """
    taken = {name.lower() for name in taken}
    names = []
    for path in paths:
        stem = _cut(os.path.splitext(os.path.basename(path))[0])
        name, number = f"{stem}.png", 1
        while name.lower() in taken:  # some file systems do not distinguish capital letters
            number += 1
            name = f"{stem}-{number}.png"
        taken.add(name.lower())
        names.append(name)
    return names


def _cut(stem):
    while len(os.fsencode(stem)) > LONGEST_NAME:
        stem = stem[:-1]
    return stem


def _photo_panel(photo, title, notes):
    panel, pen = _panel(photo)
    # The end of a long file name is the informative part.
    _text(pen, (0, 10), title, TEXT, INK, room=panel.width, keep_end=True)
    for i, note in enumerate(notes):
        _text(pen, (0, panel.height - FOOTER + 10 + i * 28), note, TEXT, FAINT, room=panel.width)
    return panel


def _class_panel(photo, shown, boxes, accent):
    panel, pen = _panel(_focus(photo, boxes, shown.weights, accent))
    number = f"{shown.probability:.2f}"
    room = panel.width - _width(number, TITLE) - 12
    _text(pen, (0, 4), shown.name, TITLE, INK, room=room)
    _text(pen, (panel.width, 4), number, TITLE, accent, anchor="ra")
    _bar(pen, (0, 44, panel.width, 50), shown.probability, accent)
    facts = (
        (weight_text(shown.weights), f"{max(shown.weights):.2f}"),
        ("direct effect", _signed(shown.effect)),
    )
    for i, (name, value) in enumerate(facts):
        y = panel.height - FOOTER + 10 + i * 28
        _text(pen, (0, y), name, TEXT, FAINT, room=panel.width)
        _text(pen, (panel.width, y), value, TEXT, INK, anchor="ra")
    return panel


def _signed(value):
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text


def _panel(photo):
    """An empty panel with a photo in its middle, and a pen for it."""
    width = max(photo.width, NARROWEST)
    panel = Image.new("RGB", (width, HEADER + photo.height + FOOTER), PAPER)
    panel.paste(photo, ((width - photo.width) // 2, HEADER))
    return panel, ImageDraw.Draw(panel)


def _focus(photo, boxes, weights, accent):
    """The photo, faded where patches weigh little against the heaviest, with their outlines and weights."""
    strength = Image.new("L", photo.size, 0)
    # Patches may overlap: the heavier one is painted over the lighter.
    for p in sorted(range(len(boxes)), key=lambda p: weights[p]):
        strength.paste(round(255 * weights[p] / max(weights)), boxes[p])
    grey = ImageEnhance.Color(photo).enhance(0.25)
    shaded = Image.composite(photo, ImageEnhance.Brightness(grey).enhance(FADED), strength)
    pen = ImageDraw.Draw(shaded, "RGBA")
    for left, top, right, bottom in boxes:
        pen.rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255, 110))
    pivot = pivot_of(weights)
    if pivot is not None:
        _frame(pen, boxes[pivot], accent)
    for p, box in enumerate(boxes):
        _tag(pen, box, f"{weights[p]:.0%}", accent if p == pivot else (0, 0, 0, 150))
    return shaded


def _frame(pen, box, accent):
    left, top, right, bottom = box
    # White around the colour, so that it stands out from any photo.
    pen.rectangle((left, top, right - 1, bottom - 1), outline=PAPER, width=7)
    if min(right - left, bottom - top) > 2:
        pen.rectangle((left + 1, top + 1, right - 2, bottom - 2), outline=accent, width=5)


def _tag(pen, box, text, colour):
    """A small label in a patch's upper left corner, if it has room for one."""
    left, top, right, bottom = box
    width, height = _width(text, SMALL) + 12, SMALL + 8
    if width + 16 <= right - left and height + 16 <= bottom - top:
        pen.rectangle((left + 6, top + 6, left + 6 + width, top + 6 + height), fill=colour)
        _text(pen, (left + 12, top + 9), text, SMALL, PAPER)


def _bar(pen, box, share, colour):
    left, top, right, bottom = box
    pen.rectangle((left, top, right - 1, bottom - 1), fill=RULE)
    if round(share * (right - left)):
        pen.rectangle((left, top, left + round(share * (right - left)) - 1, bottom - 1), fill=colour)


def _on_photo(box, photo_size, size):
    """A patch's box on a photo that was squeezed into a square for the classifier."""
    (width, height), (left, top, right, bottom) = photo_size, box
    left, right = (round(x * width / size) for x in (left, right))
    top, bottom = (round(y * height / size) for y in (top, bottom))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _text(pen, place, text, size, colour, *, room=None, keep_end=False, anchor="la"):
    text = shown = printable(text)
    while room is not None and text and _width(shown, size) > room:
        text = text[1:] if keep_end else text[:-1]
        shown = f"…{text}" if keep_end else f"{text}…"
    pen.text(place, shown, fill=colour, font=_font(size), anchor=anchor)


def _width(text, size):
    return round(_font(size).getlength(text))


@functools.cache
def _font(size):
    return ImageFont.load_default(size)
