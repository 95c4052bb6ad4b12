"""A training split oversampled so that every class is as frequent as the most common one."""

import numpy as np

from cfmlc_jax.data.sources import Record, Source
from cfmlc_jax.errors import InputError


class Balanced:
    """Each class's images repeated until they are as many as the most common class has.

    For single-label images. The second stage of learnable weight scaling is trained on such a split, as in the
    reference (whose sampler draws the images of a class at random).

    Args:
        source: a single-label source.

    Raises:
        InputError: a class has no image.
    """

    def __init__(self, source: Source):
        counts = source.labels.sum(axis=0, dtype=np.int64)
        if not counts.all():
            empty = int(np.flatnonzero(counts == 0)[0])
            raise InputError(
                f"{source!r} has no image of {source.class_names[empty]}, so classes cannot be balanced; "
                "set config.data.balanced to False"
            )
        classes = source.labels.argmax(axis=1)
        repeated = [np.resize(np.flatnonzero(classes == c), counts.max()) for c in range(len(counts))]
        self._source, self._kept = source, np.concatenate(repeated)
        self.class_names = source.class_names
        self.labels = source.labels[self._kept]
        self.ids = [source.ids[i] for i in self._kept]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        return self._source[int(self._kept[index])]

    def __repr__(self) -> str:
        return f"Balanced({self._source!r})"
