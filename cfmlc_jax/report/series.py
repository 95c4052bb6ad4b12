"""Lines of figures, and the colour that a prediction has in all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from cfmlc_jax.results.predictions import Prediction


@dataclass(frozen=True)
class Series:
    """A line of a figure.

    name: for the legend.
    colour: a custom property of style.css, without its dashes.
    points: (x, y) in order; NaN leaves a gap.
    dash: of the line, as SVG has it; None for a solid one.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dash: str | None = None


def colour(prediction: Prediction) -> str:
    """The custom property with its colour."""
    return kind_colour(prediction.kind)


def kind_colour(kind: str) -> str:
    """The custom property with the colour of a kind of predictions."""
    return kind.replace("_", "-")
