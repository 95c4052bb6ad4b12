"""A subset of a source's records."""

from collections.abc import Sequence

import numpy as np

from cfmlc_jax.data.sources import Record, Source
from cfmlc_jax.data.sources.boxes import Boxed, Boxes
from cfmlc_jax.data.sources.files import Filed


class Selected:
    """The records of a source at given positions, in the order of the positions.

    Args:
        source: the source.
        positions: positions of the records in the source.
    """

    def __init__(self, source: Source, positions: Sequence[int] | np.ndarray):
        self._source, self._positions = source, np.asarray(positions)
        self.class_names = source.class_names
        self.labels = source.labels[self._positions]
        self.ids = [source.ids[i] for i in self._positions]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._positions[index])]

    @property
    def files(self) -> list[str]:
        """The paths of the records' images; their ids if the source has no files."""
        files = self._source.files if isinstance(self._source, Filed) else self._source.ids
        return [files[i] for i in self._positions]

    def boxes(self) -> Boxes | None:
        """The boxes of these records; None if the source has none."""
        boxes = self._source.boxes() if isinstance(self._source, Boxed) else None
        return None if boxes is None else boxes.at(self._positions)

    def __repr__(self) -> str:
        return f"Selected({len(self)} of {self._source!r})"
