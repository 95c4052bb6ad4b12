"""Report of the images that cannot be read and are skipped (`data.on_error` "skip")."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from cfmlc_jax.data.evaluation import why_unreadable
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.patches import Transform


class Unreadable:
    """The images of a split that could not be read and were skipped (`data.on_error` "skip").

    Args:
        source: the split.
        to_views: its transform, which is run again for the error messages.
    """

    def __init__(self, source: Source, to_views: Transform):
        self._source, self._to_views = source, to_views
        self._unreadable = np.zeros(len(source), bool)
        self._reported: set[str] = set()

    def add(self, positions: np.ndarray) -> None:
        """Record unreadable positions in the source; −1 is ignored."""
        self._unreadable[positions[positions >= 0]] = True

    def report(self) -> list[str]:
        """A line for each image that was not reported before, and one with their number; all processes must call it."""
        if jax.process_count() > 1:
            self._unreadable = multihost_utils.process_allgather(self._unreadable).any(axis=0)
        # In a balanced source an image may have several positions.
        images = {self._source.ids[position]: int(position) for position in np.flatnonzero(self._unreadable)}
        lines = [
            f"skipped: {why_unreadable(self._source, self._to_views, position)}"
            for name, position in images.items()
            if name not in self._reported
        ]
        self._reported |= images.keys()
        count = f"{len(images)} of {len(set(self._source.ids))} images cannot be read and are skipped"
        return [*lines, count] if images else []
