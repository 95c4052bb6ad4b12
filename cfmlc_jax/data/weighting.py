"""Training images that are drawn by weights, instead of each once in an epoch."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Chooses images by their shares.

    Each of n positions is one of n equal parts of the line from 0 to 1, on which each image has a piece as long as its
    share; the image at a random point of the part is read. So of n positions each image gets n times its share, rounded
    up or down, or one more or less.

    ends: of the images' pieces, float [n], the last is 1.
    """

    ends: np.ndarray

    def __call__(self, position: int, generator: np.random.Generator) -> int:
        """The image that is read at a position."""
        n = len(self.ends)
        return min(int(np.searchsorted(self.ends, (position + generator.random()) / n, side="right")), n - 1)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """How often each image of a source is drawn.

    weights: float [n], in any unit.
    from_epoch: the first epoch that uses them, from 1; before it each image is drawn once in an epoch.
    """

    weights: np.ndarray
    from_epoch: int = 1

    def drawn(self) -> Drawn:
        """What chooses the images."""
        return Drawn(np.cumsum(self.weights) / np.sum(self.weights))
