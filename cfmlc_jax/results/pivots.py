"""How pictures show the weights of patches, the same in overlays and in the report."""

from collections.abc import Sequence

# Brightness of a patch without weight.
FADED = 0.38
# A pivot weighs at least this many times an equal share. A softmax always has a largest weight, also
# where attention is as good as uniform (26, 24, 24 and 26 %): a frame there would show a choice that
# the classifier has not made.
PIVOT = 1.5


def pivot_of(weights: Sequence[float]) -> int | None:
    """The patch that a class looks at, by its number; None where no patch weighs `PIVOT` times an equal share."""
    heaviest = max(range(len(weights)), key=lambda p: weights[p])
    return heaviest if weights[heaviest] * len(weights) >= PIVOT else None


def weight_text(weights: Sequence[float]) -> str:
    """What the largest of the weights is called."""
    return "no pivot, at most" if pivot_of(weights) is None else "pivot weight"
