"""Predictions: kind and strength, names in files, flags and text, order."""

import argparse
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

_TITLES = {
    "whole": "whole image",
    "patch": "patches",
    "combined": "combined",
    "shape": "shape head",
    "texture": "texture head",
    "background": "background head",
    "shape_texture": "shape and texture heads",
    "tde_whole": "TDE whole",
    "tde_pivot": "TDE pivot",
    "tde_owner": "TDE owner",
    "tde_feature": "TDE feature",
}
# The order in which predictions are listed.
KINDS = tuple(_TITLES)
# Of the heads of an invariant classifier.
HEADS = ("shape", "texture", "background", "shape_texture")
# Kinds of total direct effects, and the counterfactual that each subtracts.
EFFECTS = {kind: kind.removeprefix("tde_") for kind in KINDS if kind.startswith("tde_")}
_NULL = "null_"


@functools.total_ordering
@dataclass(frozen=True, eq=False)
class Prediction:
    """One of the logits that a classifier predicts: "whole", "patch", "combined", …, or a TDE with its strength.

    Sorted by kind (`KINDS`), then by strength. Two are equal if their names are equal; a name has six digits of
    the strength.

    Args:
        kind: one of `KINDS`.
        alpha: strength of a total direct effect; None for other kinds.

    Raises:
        ValueError: an unknown kind, an effect without a strength of 0 or more, or a strength for another kind.
    """

    kind: str
    alpha: float | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"prediction {self.kind!r} is not one of {', '.join(KINDS)}")
        if (self.alpha is None) == self.is_effect or not 0 <= (self.alpha or 0.0) < math.inf:
            raise ValueError(f"prediction {self.kind!r} with the strength {self.alpha}")

    @classmethod
    def parse(cls, name: str) -> "Prediction":
        """The prediction with this `name`.

        Raises:
            ValueError: no prediction has this name; says which there are.
        """
        if name in EFFECTS:
            raise ValueError(f"{name!r} needs a strength, such as {name}_0.5")
        kind, _, alpha = name.rpartition("_")
        try:
            return cls(kind, float(alpha)) if kind in EFFECTS else cls(name)
        except ValueError as error:
            named = (f"{kind}_<strength>" if kind in EFFECTS else kind for kind in KINDS)
            raise ValueError(
                f"{name!r} is not the name of a prediction, which are {', '.join(named)}"
            ) from error

    @property
    def name(self) -> str:
        """The name in files, such as "combined" or "tde_pivot_0.5"."""
        return self.kind if self.alpha is None else f"{self.kind}_{self.alpha:g}"

    @property
    def title(self) -> str:
        """The name in text, such as "combined" or "TDE pivot, α 0.5"."""
        title = kind_title(self.kind)
        return title if self.alpha is None else f"{title}, α {self.alpha:g}"

    @property
    def is_effect(self) -> bool:
        """Whether it is a total direct effect."""
        return self.kind in EFFECTS

    @property
    def counterfactual(self) -> str | None:
        """The kind of counterfactual that an effect subtracts, "whole", "pivot", "owner" or "feature"; None for other kinds."""
        return EFFECTS.get(self.kind)

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prediction) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __lt__(self, other: "Prediction") -> bool:
        return self._rank < other._rank

    @property
    def _rank(self):
        return KINDS.index(self.kind), 0.0 if self.alpha is None else float(f"{self.alpha:g}")


WHOLE, PATCH, COMBINED = Prediction("whole"), Prediction("patch"), Prediction("combined")


def effect_of(counterfactual: str, alpha: float) -> Prediction:
    """The total direct effect that subtracts a kind of counterfactual."""
    return Prediction(f"tde_{counterfactual}", alpha)


def argument(text: str) -> Prediction:
    """A `type` for argparse: the prediction with this name."""
    try:
        return Prediction.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def kind_title(kind: str) -> str:
    """The name of one of `KINDS` in text."""
    return _TITLES[kind]


def one_of_each_kind(predictions: Iterable[Prediction]) -> list[Prediction]:
    """The first prediction of each kind, so each effect with its first strength."""
    first: dict[str, Prediction] = {}
    for prediction in predictions:
        first.setdefault(prediction.kind, prediction)
    return list(first.values())


def chief_effect(predictions: Iterable[Prediction]) -> Prediction | None:
    """The effect to show where there is room for one: owner, else pivot, else whole, else feature; with its first strength."""
    by_kind = {prediction.kind: prediction for prediction in one_of_each_kind(predictions)}
    chosen = (by_kind.get(kind) for kind in ("tde_owner", "tde_pivot", "tde_whole", "tde_feature"))
    return next((prediction for prediction in chosen if prediction), None)


def null_name(counterfactual: str) -> str:
    """The name of the array of counterfactual logits of a kind, "null_pivot" for "pivot"."""
    return f"{_NULL}{counterfactual}"


def counterfactual_of(array: str) -> str | None:
    """The kind of counterfactual of the array with this name; None if it holds no counterfactual logits."""
    return array.removeprefix(_NULL) if array.startswith(_NULL) else None
