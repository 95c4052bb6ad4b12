"""Images that cannot be read and are left out (`data.on_error` "skip"): each named once."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from cfmlc_jax.data.pipeline import why_unreadable
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.views.patches import Transform


class Unreadable:
    """The images of a split that could not be read and were left out (`data.on_error` "skip"), each named once.

    Args:
        source: the split.
        to_views: its transform, which they failed in.
    """

    def __init__(self, source: Source, to_views: Transform):
        self._source, self._to_views = source, to_views
        self._found = np.zeros(len(source), bool)
        self._named: set[str] = set()

    def add(self, positions: np.ndarray) -> None:
        """Note positions in the source; −1 is none."""
        self._found[positions[positions >= 0]] = True

    def report(self) -> list[str]:
        """A line for each image that was not named before, and one with their number; all processes call it together."""
        if jax.process_count() > 1:
            self._found = multihost_utils.process_allgather(self._found).any(axis=0)
        # An image may have several positions, where classes are balanced.
        images = {self._source.ids[position]: int(position) for position in np.flatnonzero(self._found)}
        lines = [
            f"skipped: {why_unreadable(self._source, self._to_views, position)}"
            for name, position in images.items()
            if name not in self._named
        ]
        self._named |= images.keys()
        count = f"{len(images)} of {len(set(self._source.ids))} images cannot be read and are left out"
        return [*lines, count] if images else []
