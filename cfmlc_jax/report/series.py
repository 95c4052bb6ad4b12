"""Lines of figures, and the colours of predictions in all figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cfmlc_jax.results.predictions import Prediction

T = TypeVar("T")


@dataclass(frozen=True)
class Series:
    """A line of a figure.

    name: for the legend.
    colour: a custom property of style.css, without "--".
    points: (x, y) in order; NaN leaves a gap.
    dash: SVG's stroke-dasharray; None for a solid line.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dash: str | None = None


def evenly(entries: Sequence[T], most: int) -> list[T]:
    """The entries; if there are too many, `most` of them, evenly spaced, with the first and the last."""
    if len(entries) <= most:
        return list(entries)
    step = (len(entries) - 1) / (most - 1)
    return [entries[round(i * step)] for i in range(most)]


def colour(prediction: Prediction) -> str:
    """The custom property with the colour of a prediction."""
    return kind_colour(prediction.kind)


def kind_colour(kind: str) -> str:
    """The custom property with the colour of a kind of prediction."""
    return kind.replace("_", "-")
