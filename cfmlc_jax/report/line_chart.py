"""Line charts as SVG, legible at the width of a phone."""

import math
from collections.abc import Sequence

from cfmlc_jax.report.markup import Markup, element, number
from cfmlc_jax.report.scales import Axis
from cfmlc_jax.report.series import Series, evenly

WIDTH, HEIGHT = 380, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 26, 36
# Lines with more points are thinned: there are not enough pixels.
MOST_POINTS = 240
_FEW = 16  # lines with at most this many points have a dot at each


def line_chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, note: Markup | str | None = None
) -> Markup:
    """A figure of lines, with a caption and a legend.

    Args:
        title: of the figure; also part of its accessible name.
        series: the lines; the last is drawn on top.
        x: horizontal axis.
        y: vertical axis.
        note: a sentence under the title.
    """
    parts = [*_grid(x, y), *(part for line in series for part in _line(line, x, y))]
    drawing = element(
        "svg",
        *parts,
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {y.label} over {x.label}, {', '.join(line.name for line in series)}",
    )
    caption = element("figcaption", element("strong", title), None if note is None else element("span", note))
    return element(
        "figure", caption, drawing, legend(series) if len(series) > 1 else None, class_="panel lines"
    )


def small_chart(title: str, detail: str, series: Sequence[Series]) -> Markup:
    """A small figure of lines in the unit square, with a title and a detail above it."""
    side, pad = 120, 3
    frame = element("rect", x=pad, y=pad, width=side - 2 * pad, height=side - 2 * pad, class_="frame")
    lines = [
        element("path", d=_path([(pad + (side - 2 * pad) * px, side - pad - (side - 2 * pad) * py) for px, py in line.points]), class_="line thin", style=f"stroke:var(--{line.colour})")
        for line in series
    ]  # fmt: skip
    drawing = element(
        "svg", frame, *lines, viewBox=f"0 0 {side} {side}", class_="chart", role="img", aria_label=f"{title}, {detail}"
    )  # fmt: skip
    caption = element("figcaption", element("strong", title), element("span", detail))
    return element("figure", caption, drawing, class_="small")


def legend(series: Sequence[Series]) -> Markup:
    """A legend: the names of lines, each with a sample of the line."""
    entries = [element("li", _swatch(line), line.name) for line in series]
    return element("ul", *entries, class_="legend")


def _swatch(line):
    stroke = element(
        "line", x1=0, y1=5, x2=22, y2=5, class_="line", stroke_dasharray=line.dash, style=f"stroke:var(--{line.colour})"
    )  # fmt: skip
    return element("svg", stroke, width=22, height=10, aria_hidden="true")


def _grid(x, y):
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick in y.ticks:
        at = y.place(tick, bottom, TOP)
        parts.append(element("line", x1=LEFT, x2=right, y1=at, y2=at, class_="rule"))
        parts.append(element("text", y.tick_text(tick), x=LEFT - 6, y=at + 3.5, class_="tick end"))
    for tick in x.ticks:
        at = x.place(tick, LEFT, right)
        parts.append(element("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
        # A centred text at the last tick would be cut off.
        side = " end" if at > right - 12 else " middle"
        parts.append(element("text", x.tick_text(tick), x=at, y=bottom + 15, class_=f"tick{side}"))
    parts.append(element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", y.label, x=2, y=11, class_="label"))
    parts.append(element("text", x.label, x=right, y=HEIGHT - 4, class_="label end"))
    return parts


def _line(line, x, y):
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    placed = [
        (x.place(px, LEFT, right), y.place(py, bottom, TOP)) if math.isfinite(py) else None
        for px, py in evenly(line.points, MOST_POINTS)
    ]
    style = f"stroke:var(--{line.colour})"
    yield element("path", d=_path(placed), class_="line", stroke_dasharray=line.dash, style=style)
    if len(placed) <= _FEW:
        yield from (
            element("circle", cx=place[0], cy=place[1], r=2.2, style=f"fill:var(--{line.colour})")
            for place in placed
            if place is not None
        )


def _path(places):
    commands, pen_up = [], True
    for place in places:
        if place is None:
            pen_up = True
            continue
        commands.append(f"{'M' if pen_up else 'L'}{number(float(place[0]))} {number(float(place[1]))}")
        pen_up = False
    return "".join(commands)
