"""Random-access sources of labelled images, one file per data set, and what they share."""

from typing import Any, Protocol, TypedDict

import numpy as np


class Record(TypedDict, total=False):
    """One image and what is known of it.

    image: the file's bytes, or decoded uint8 [h, w, 3].
    labels: uint8 [k], 1 where the class is present.
    id: unique within the data set, the same on every machine.
    where: what to name in an error about this image (a path, say).
    """

    image: Any
    labels: np.ndarray
    id: str
    where: str


class Source(Protocol):
    """A data set's split: `len(source)` records by index, readable from several processes.

    class_names: the k classes, in label order.
    labels: uint8 [n, k] of the whole split, without reading an image.
    ids: the n records' ids.
    A source's `repr` is stable: no address, no absolute path (checkpoints compare it).
    One whose data set has boxes gives them too (`boxes.Boxed`).
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...
