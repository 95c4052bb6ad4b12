"""How overlays and the report show the weights of patches."""

from collections.abc import Sequence

# Brightness of a patch with weight 0.
FADED = 0.38
# A pivot is shown only if its weight is at least this multiple of the uniform weight 1/p. Every softmax has a
# largest weight, even if attention is almost uniform (26, 24, 24 and 26 %); then no patch stands out.
PIVOT = 1.5


def pivot_of(weights: Sequence[float]) -> int | None:
    """The number of the pivot patch; None if no weight is at least `PIVOT` times the uniform weight."""
    heaviest = max(range(len(weights)), key=lambda p: weights[p])
    return heaviest if weights[heaviest] * len(weights) >= PIVOT else None


def weight_text(weights: Sequence[float]) -> str:
    """The words that precede the largest weight."""
    return "no pivot, at most" if pivot_of(weights) is None else "pivot weight"
