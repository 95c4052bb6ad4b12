"""Tables of numbers, and the small figures in their cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cfmlc_jax.report.markup import Child, Markup, element
from cfmlc_jax.report.scales import Axis


@dataclass(frozen=True)
class Change:
    """A number that is shown with its sign, also if positive."""

    value: float


Cell = Child | Change


def table(
    header: Sequence[Child],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str,
    tall: bool = False,
    sortable: bool = False,
) -> Markup:
    """A table; the first column has the names of the rows. It scrolls sideways if it is wide.

    Args:
        header: titles of the columns.
        rows: floats are shown with two decimals, NaN as a dash. Columns of numbers are right-aligned.
        caption: what the table shows, for screen readers.
        tall: the table is long, so it also scrolls within the height of a screen.
        sortable: a click on a title sorts the rows, where scripts run (page.js).
    """
    sides = [_is_number(cell) for cell in rows[0]] if rows else [False] * len(header)
    titles = [
        element("th", title, scope="col", class_="n" if right else None)
        for title, right in zip(header, sides, strict=True)
    ]
    head = element("thead", element("tr", *titles))
    body = element("tbody", *(_row(row) for row in rows))
    whole = element("table", element("caption", caption), head, body, class_="sortable" if sortable else None)
    # Scrolling must be possible by keyboard, hence the tabindex.
    return element(
        "div",
        whole,
        class_="scroll tall" if tall else "scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def _row(row):
    name, *cells = row
    return element("tr", element("th", name, scope="row"), *(_cell(cell) for cell in cells))


def _cell(cell):
    if isinstance(cell, Change):
        return element("td", signed(cell.value), class_="n")
    if isinstance(cell, float | int):
        return element("td", decimal(cell) if isinstance(cell, float) else f"{cell:,}", class_="n")
    return element("td", cell)


def _is_number(cell):
    return isinstance(cell, float | int | Change)


def decimal(value: float, digits: int = 2) -> str:
    """A number as text, with a true minus sign; NaN is a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A number as text with its sign; NaN is a dash."""
    return "–" if math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def with_interval(value: float, low: float, high: float, *, sign: bool = False, digits: int = 2) -> Markup:
    """A number and, in smaller type, the ends of its interval, unless they are NaN."""
    text = signed(value, digits) if sign else decimal(value, digits)
    if math.isnan(low):
        return element("span", text, class_="n")
    ends = f"[{decimal(low, digits)}, {decimal(high, digits)}]"
    return element("span", text, " ", element("small", ends), class_="n")


def axis_text(axis: Axis, unit: str = "%") -> str:
    """The title of a column of tracks: the values at its ends, and their unit."""
    return f"{axis.low:g} to {axis.high:g} {unit}".replace("-", "−")


def interval_track(value_low_high: Sequence[float], axis: Axis, colour: str) -> Markup:
    """A track with a dot for the value and a line for its interval."""
    value, low, high = value_low_high
    start, at, end = (axis.place(x, 0.0, 100.0) for x in (low, value, high))
    return track([span(start, end, colour), dot(at, colour)], text=f"{decimal(value)} %")


def track(marks: Sequence[Markup | None], *, text: str) -> Markup:
    """A line across a cell, with marks on it (`bar`, `dot`, `tick`, `span`)."""
    return element("span", *marks, class_="track", role="img", aria_label=text)


def bar(value: float, colour: str) -> Markup | None:
    """A mark from 0 to the value, in percent of the track."""
    return _mark("bar", colour, f"width:{_at(value)}%", value)


def dot(value: float, colour: str) -> Markup | None:
    """A point at the value, in percent of the track."""
    return _mark("dot", colour, f"left:{_at(value)}%", value)


def tick(value: float, colour: str) -> Markup | None:
    """A short vertical line at the value, in percent of the track."""
    return _mark("tick", colour, f"left:{_at(value)}%", value)


def span(low: float, high: float, colour: str) -> Markup | None:
    """A thin line between two values, in percent of the track."""
    return _mark("span", colour, f"left:{_at(low)}%;width:{max(0.0, _at(high) - _at(low)):.2f}%", high - low)


def key(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """A legend of the marks on tracks; each entry is (mark, colour, meaning)."""
    items = [
        element("li", element("i", class_=f"key {mark}", style=f"--mark:var(--{colour})"), meaning)
        for mark, colour, meaning in entries
    ]
    return element("ul", *items, class_="legend")


def _mark(kind, colour, style, value):
    if math.isnan(value):
        return None
    return element("i", class_=kind, style=f"{style};--mark:var(--{colour})")


def _at(value):
    return 0.0 if math.isnan(value) else round(min(100.0, max(0.0, value)), 2)
