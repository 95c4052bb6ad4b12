"""Heat maps of class × class matrices as SVG, for light and dark pages: the opacity of a colour shows the value."""

import math
from collections.abc import Sequence

import numpy as np

from cfmlc_jax.report.markup import Markup, element

# With at most this many classes, cells are large and show their number.
NUMBERED = 12
NEGATIVE = "combined"  # custom property with the colour of negative values
LARGE_CELL, SMALL_CELL = 25, 13
LETTER = 6.1  # width of a letter of a label, pixels
LONGEST_LABEL = 14  # letters
ON_DARK = 0.78  # opacity above which numbers have the colour of the page, so that they are legible


def heat_map(
    title: str,
    matrix,
    names: Sequence[str],
    *,
    top: float,
    note: str | None = None,
    positive: str = NEGATIVE,
    mark: Sequence[tuple[int, int]] = (),
) -> Markup:
    """A figure of a matrix [k, k] with named rows and columns; it scrolls sideways if it is wide.

    Args:
        title: of the figure; also its accessible name.
        matrix: in percent; NaN entries stay empty.
        names: of the k classes.
        top: absolute value that is shown in the full colour, above 0.
        note: a sentence under the title.
        positive: custom property of style.css with the colour of positive values.
        mark: entries (row, column) with a frame.
    """
    matrix = np.asarray(matrix, np.float64)
    side = LARGE_CELL if len(names) <= NUMBERED else SMALL_CELL
    shown = [name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…" for name in names]
    gutter = 8 + LETTER * max(len(name) for name in shown)
    width, height = gutter + side * len(names) + 2, gutter + side * len(names) + 2
    parts = [*_labels(shown, gutter, side), *_cells(matrix, names, gutter, side, top, positive)]
    parts += [
        element("rect", x=gutter + side * j + 0.5, y=gutter + side * i + 0.5, width=side - 1, height=side - 1, class_="mark")
        for i, j in mark
    ]  # fmt: skip
    drawing = element(
        "svg",
        *parts,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        class_="heat" if side == SMALL_CELL else "heat fits",
        role="img",
        aria_label=title if note is None else f"{title}: {note}",
    )
    caption = element("figcaption", element("strong", title), None if note is None else element("span", note))
    return element("figure", caption, element("div", drawing, class_="scroll"), class_="panel")


def _labels(names, gutter, side):
    for i, name in enumerate(names):
        middle = gutter + side * (i + 0.5)
        yield element("text", name, x=gutter - 5, y=middle + 3.5, class_="tick end")
        turn = f"translate({middle + 3.5:.1f} {gutter - 5:.1f}) rotate(-90)"
        yield element("text", name, transform=turn, class_="tick")


def _cells(matrix, names, gutter, side, top, positive):
    for (i, j), value in np.ndenumerate(matrix):
        x, y = gutter + side * j, gutter + side * i
        if math.isnan(value):
            yield element("rect", x=x + 0.5, y=y + 0.5, width=side - 1, height=side - 1, class_="empty")
            continue
        strength = min(1.0, abs(value) / top)
        hue = positive if value >= 0 else NEGATIVE
        words = element("title", f"{names[i]} with {names[j]}: {_whole(value)} %")
        box = {"x": x + 0.5, "y": y + 0.5, "width": side - 1, "height": side - 1}
        yield element(
            "rect", words, class_="cell", style=f"fill:var(--{hue});fill-opacity:{strength:.2f}", **box
        )
        if side == LARGE_CELL:
            dark = "on" if strength > ON_DARK else "off"
            yield element("text", _whole(value), x=x + side / 2, y=y + side / 2 + 3.3, class_=f"value {dark}")


def _whole(value):
    return (
        f"{value:.0f}".replace("-", "−").replace("−0", "0")
        if abs(value) < 0.5
        else f"{value:.0f}".replace("-", "−")
    )
