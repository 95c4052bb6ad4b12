"""How predictions are named and told apart: a colour each and, for several strengths, a dash each."""

from collections.abc import Sequence
from dataclasses import dataclass

_NAMES = {
    "whole": "whole image",
    "patch": "patches",
    "combined": "combined",
    "tde_whole": "TDE whole",
    "tde_pivot": "TDE pivot",
    "tde_feature": "TDE feature",
}
# By the number of a strength among those of its kind; beyond them they repeat.
_DASHES = (None, "5 3", "1.5 3")


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


def kind_of(prediction: str) -> str:
    """The kind without its strength: "tde_pivot" of "tde_pivot_0.5"."""
    return prediction if prediction in _NAMES else prediction.rpartition("_")[0]


def title(prediction: str) -> str:
    """The prediction's name as people read it."""
    kind = kind_of(prediction)
    return _NAMES[kind] if kind == prediction else f"{_NAMES[kind]}, α {prediction.rpartition('_')[2]}"


def colour(prediction: str) -> str:
    """The custom property with its colour."""
    return kind_of(prediction).replace("_", "-")


def dash(prediction: str, among: Sequence[str]) -> str | None:
    """Dash of its line, by its place among the strengths of its kind."""
    same = [name for name in among if kind_of(name) == kind_of(prediction)]
    return _DASHES[same.index(prediction) % len(_DASHES)]


def chief(predictions: Sequence[str]) -> list[str]:
    """Those that a crowded figure shows: one of each kind, of effects the first strength."""
    first: dict[str, str] = {}
    for name in predictions:
        first.setdefault(kind_of(name), name)
    return list(first.values())


def effect(predictions: Sequence[str]) -> str | None:
    """The effect that stands for all: of the pivot, else of the whole, else of the feature; its first strength."""
    found = {kind_of(name): name for name in chief(predictions)}
    return next((found[kind] for kind in ("tde_pivot", "tde_whole", "tde_feature") if kind in found), None)
