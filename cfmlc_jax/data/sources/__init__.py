"""Random-access sources of labelled images, one file per data set, and their common interface."""

from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np


class Record(TypedDict, total=False):
    """One image with its labels.

    image: the file's bytes, or decoded uint8 [h, w, 3].
    labels: uint8 [k], 1 where the class is present.
    id: unique within the data set, the same on every machine.
    where: how error messages name the image, for example its path.
    """

    image: Any
    labels: np.ndarray
    id: str
    where: str


class Source(Protocol):
    """A split of a data set: `len(source)` records by index, readable from several processes.

    class_names: the k classes, in label order.
    labels: uint8 [n, k] of the whole split, known without reading an image.
    ids: the n records' ids.

    The `repr` of a source is stable, without memory addresses and absolute paths, because checkpoints compare it.
    Sources with boxes also implement `boxes.Boxed`.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@runtime_checkable
class MechanismSource(Source, Protocol):
    """A source of images whose mechanisms (shape, texture, background) have a label each; `labels` are the shape's.

    mechanisms: int32 [n, 3], the labels of the whole split, in the order of `causal.mechanisms.MECHANISMS`.
    """

    mechanisms: np.ndarray
