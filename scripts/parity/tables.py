"""The comparison as text."""

from collections.abc import Sequence

from scripts.parity.verdicts import Row


def table(rows: Sequence[Row]) -> str:
    """The lines as a Markdown table; "rounding" is PyTorch's own."""
    header = ("stage", "shape", "max abs difference", "relative", "rounding", "tolerance", "verdict")
    cells = [
        (
            row.stage,
            row.shape,
            f"{row.difference:.1e}",
            f"{row.relative:.1e}",
            f"{row.rounding:.1e}",
            f"{row.tolerance:.1e}",
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in (header, rule, *cells)
    )


def summary(rows: Sequence[Row]) -> str:
    """The verdicts in one line."""
    differing = [row.stage for row in rows if row.verdict == "differs"]
    inconclusive = sum(row.verdict == "rounding" for row in rows)
    if all(row.verdict == "–" for row in rows):
        return "distances without verdicts"
    text = f"{sum(row.verdict == 'agrees' for row in rows)} of {len(rows)} stages agree"
    if inconclusive:
        text += (
            f"; {inconclusive} inconclusive, because PyTorch's own rounding is too large: try --dtype=float64"
        )
    return text + (f"; first to differ: {differing[0]}" if differing else "")
