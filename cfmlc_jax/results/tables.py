"""Text tables: aligned for the console and valid as Markdown, or lines of CSV."""

import contextlib
import csv
import io
from collections.abc import Iterable, Sequence

# A spreadsheet takes text that begins so for a formula, and runs it; the last four are their wide forms.
FORMULA_STARTS = (*"=+-@\t\r", *"＝＋－＠")


def csv_line(values: Iterable[object]) -> str:
    """A line of CSV with its line break. Text that a spreadsheet would run as a formula begins with an apostrophe."""
    text = io.StringIO()
    # Before Python 3.11.9 a carriage return within a field is put in quotes only if one ends the line.
    csv.writer(text, lineterminator="\r\n").writerow([_harmless(value) for value in values])
    return text.getvalue().removesuffix("\r\n") + "\n"


def _harmless(value):
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return value
    with contextlib.suppress(ValueError):
        float(value)
        return value  # a number, such as -5
    return f"'{value}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, padded so that it can be read as plain text. Columns of numbers are right-aligned.

    Floats have two decimals; NaN is a dash.
    """
    cells = [[str(title) for title in header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))
    ]
    rule = [("-" * (w - 1) + ":") if right else "-" * w for w, right in zip(widths, numeric, strict=True)]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.rjust(w) if right else cell.ljust(w)
            for cell, w, right in zip(line, widths, numeric, strict=True)
        )
        + " |"
        for line in lines
    )


def with_interval(entry: Sequence[float]) -> str:
    """A value with the ends of its interval, [value, low, high], as text; a dash for NaN, no ends if they are NaN."""
    value, low, high = entry
    if value != value:
        return "–"
    return f"{value:.1f}" if low != low else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _cell(value):
    if isinstance(value, float):
        return "–" if value != value else f"{value:.2f}"
    return str(value)
