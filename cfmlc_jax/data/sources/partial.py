"""Partial labels: a class may be known to be present, known to be absent, or unknown.

They are int8 [n, k] with 1, 0 and −1. A split without an unknown entry has the usual uint8.
"""

import numpy as np

from cfmlc_jax.data.sources import Record, Source
from cfmlc_jax.data.sources.boxes import Boxed, Boxes

UNKNOWN = -1
# What a class is that the annotations of an image do not mention: "assume negative", or unknown.
UNMENTIONED = ("absent", "unknown")


def unmentioned_label(unmentioned: str) -> int:
    """The label of a class that is not mentioned, by a name of `UNMENTIONED`: 0 or −1."""
    return UNKNOWN if unmentioned == "unknown" else 0


def compact(labels: np.ndarray) -> np.ndarray:
    """Labels [n, k] of 1, 0 and −1 in the type that sources have: int8 if an entry is unknown, else uint8."""
    return labels.astype(np.int8 if (labels < 0).any() else np.uint8)


class Hidden:
    """A source with a share of its labels hidden, to measure what partial labels cost.

    The hidden entries depend on the share, the seed and the shape of the labels alone. Of each image one label or more
    stays.

    Args:
        source: the source.
        share: of the entries to hide, at least 0 and below 1.
        seed: chooses them.
        unmentioned: a name of `UNMENTIONED`, what a hidden entry becomes. "absent": also a class that is present.
    """

    def __init__(self, source: Source, share: float, *, seed: int, unmentioned: str):
        self._source = source
        self._how = f"share={share:g}, seed={seed}, unmentioned={unmentioned!r}"
        self.class_names, self.ids = source.class_names, source.ids
        labels = source.labels.astype(np.int8)
        labels[hidden_entries(labels.shape, share, seed)] = unmentioned_label(unmentioned)
        self.labels = compact(labels)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        record["labels"] = self.labels[index].copy()
        return record

    def boxes(self) -> Boxes | None:
        """The boxes of the source, those of hidden classes too; None if it has none."""
        return self._source.boxes() if isinstance(self._source, Boxed) else None

    def __repr__(self) -> str:
        return f"Hidden({self._source!r}, {self._how})"


def hidden_entries(shape: tuple[int, int], share: float, seed: int) -> np.ndarray:
    """Which entries are hidden: [n, k] -> bool [n, k], of each image ⌊share·k⌋ or one more, and never all."""
    n, k = shape
    generator = np.random.default_rng(seed)
    number = np.minimum((share * k + generator.random(n)).astype(int), k - 1)
    order = generator.random((n, k)).argsort(axis=1).argsort(axis=1)
    return order < number[:, None]
