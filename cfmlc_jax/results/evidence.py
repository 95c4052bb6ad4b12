"""evidence.json: what the report shows besides results and scores (names, training labels, example images).

The full evaluation writes this file, so that a report can be made without the data set.
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.results import json_types
from cfmlc_jax.results.json_types import FormatError, Formerly
from cfmlc_jax.results.thresholds import Thresholds

FILE = "evidence.json"


@dataclass(frozen=True)
class Training:
    """A summary of the training labels.

    images: number of training images.
    counts: [k][k], images that have both classes; on the diagonal, images of one class.
    pairs: [m][2], target and context (class indices) of the strongest pairs, strongest first.
    known: [k][k], `cooccurrence.known_counts`; None if all labels are known.
    """

    images: int
    counts: list[list[int]]
    pairs: list[list[int]]
    known: list[list[int]] | None = None

    def of_images(self) -> np.ndarray:
        """What `counts` are shares of, [k, k]: the images with the column's class; on the diagonal, all images.

        Of these, only the images of which the row's class is known.
        """
        if self.known is not None:
            return np.array(self.known)
        counts = np.array(self.counts)
        images = np.broadcast_to(counts.diagonal(), counts.shape).copy()
        np.fill_diagonal(images, self.images)
        return images

    def to_json(self) -> dict[str, Any]:
        """The fields by name, without `known` if all labels are known."""
        fields = json_types.fields_to_json(self)
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class ExampleClass:
    """One class of an example.

    label: index of the class.
    present: whether the image has the class.
    probability: by the combined prediction.
    weights: [p], the weight of each patch in the class's evidence; None without patches.
    effect: the combined logit minus that without the pivot patch; None if not computed.
    boxes: [n][4], left, top, right, bottom as fractions of the image's sides.
    """

    label: int
    present: bool
    probability: float
    weights: list[float] | None
    effect: float | None
    boxes: list[list[float]]


@dataclass(frozen=True)
class Example:
    """An image that is predicted especially well or badly.

    id: of the image in its data set.
    loss: mean cross-entropy over the classes, nats.
    labels: indices of the classes that the image has.
    width, height: of the shown JPEG image, pixels.
    jpeg: the shown image, base64.
    classes: the classes to show with it.
    """

    id: str
    loss: float
    labels: list[int]
    width: int
    height: int
    jpeg: str
    classes: list[ExampleClass]


@dataclass(frozen=True)
class Picture:
    """A small image.

    id: of the image in its data set.
    labels: indices of the classes that the image has.
    width, height: of the picture, pixels.
    jpeg: the picture, base64.
    """

    id: str
    labels: list[int]
    width: int
    height: int
    jpeg: str


@dataclass(frozen=True)
class GalleryEntry:
    """An image of a class: the index of its picture, and the class's probability by the combined prediction."""

    picture: int
    probability: float


@dataclass(frozen=True)
class ClassImages:
    """The images that a class shows.

    label: index of the class.
    without: images without the class, the most probable first.
    with_class: images with the class, the least probable first.
    """

    label: int
    without: list[GalleryEntry]
    with_class: list[GalleryEntry]


@dataclass(frozen=True)
class Gallery:
    """Pictures of a split, and the classes that show some of them."""

    pictures: list[Picture]
    classes: list[ClassImages]


@dataclass(frozen=True)
class Evidence:
    """The content of the file.

    config: configuration of the evaluation, as JSON types.
    checkpoint: name of the evaluated checkpoint.
    class_names: in label order.
    training: None if the training labels are not available or not needed.
    missing: the reason why `training` is None.
    patch_boxes: [p][4], left, top, right, bottom of the patches as fractions; None without patches.
    examples: by split, then "best" and "worst".
    class_counts: training images of each class, for the single-label task; None otherwise, or if unknown.
    thresholds: fitted to the checkpoint; None: 0.5.
    gallery: images of the classes, by split; for the multi-label task.
    images: digests of the images and labels of each split (`data.identity`), by split.
    """

    config: dict[str, Any]
    checkpoint: str
    class_names: list[str]
    training: Training | None
    missing: str
    patch_boxes: Annotated[list[list[float]] | None, Formerly("cells")]
    examples: Annotated[dict[str, dict[str, list[Example]]], Formerly("exhibits")]
    class_counts: list[int] | None = None
    thresholds: Thresholds | None = None
    gallery: dict[str, Gallery] = dataclasses.field(default_factory=dict)
    images: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON types."""
        return json_types.fields_to_json(self)

    @classmethod
    def from_json(cls, value: Any, place: str = "it") -> Self:
        """The evidence that `to_json` of this or an older version wrote.

        Raises:
            FormatError: a field is missing, has another type, or does not fit the other fields.
        """
        fields = json_types.fields_from_json(cls, value, place)
        evidence = cls(**fields | {"config": configs.translated(fields["config"])})
        evidence._require_consistent()
        return evidence

    def _require_consistent(self):
        """Raise unless all indices and shapes fit."""
        classes = len(self.class_names)
        effect = json_types.require_object(self.config.get("effect"), "config.effect")
        json_types.from_json(list[float], effect.get("alphas"), "config.effect.alphas")
        if self.class_counts is not None and len(self.class_counts) != classes:
            raise FormatError(f"it has {len(self.class_counts)} class_counts for {classes} classes")
        if self.thresholds is not None and self.thresholds.class_names != self.class_names:
            raise FormatError("thresholds are of other classes")
        if self.training is not None:
            _require_training(self.training, classes)
        for example in self._all_examples():
            _require_example(example, classes, len(self.patch_boxes or []))
        for split, gallery in self.gallery.items():
            _require_gallery(gallery, classes, f"gallery.{split}")

    def _all_examples(self) -> Iterator[Example]:
        for kinds in self.examples.values():
            for examples in kinds.values():
                yield from examples


def _require_training(training: Training, classes):
    for table in (training.counts, training.known):
        if table is not None and (len(table) != classes or {len(row) for row in table} - {classes}):
            raise FormatError(f"training.counts is not a table of {classes} classes")
    if training.images < 1:
        raise FormatError(f"training.counts is not a table of {classes} classes")
    if any(len(pair) != 2 for pair in training.pairs):
        raise FormatError("training.pairs has an entry that is not a pair of classes")
    _require_indices([k for pair in training.pairs for k in pair], classes, "training.pairs")


def _require_example(example: Example, classes, patches):
    place = f"the example {example.id}"
    _require_indices([*example.labels, *(shown.label for shown in example.classes)], classes, place)
    for shown in example.classes:
        if shown.weights is not None and len(shown.weights) != patches:
            raise FormatError(f"{place} has {len(shown.weights)} weights for {patches} patches")
        if np.shape(shown.boxes) not in ((0,), (len(shown.boxes), 4)):
            raise FormatError(f"{place} has a box that is not left, top, right, bottom")


def _require_gallery(gallery: Gallery, classes, place):
    _require_indices([k for picture in gallery.pictures for k in picture.labels], classes, place)
    _require_indices([images.label for images in gallery.classes], classes, place)
    entries = [entry for images in gallery.classes for entry in (*images.without, *images.with_class)]
    wrong = [entry.picture for entry in entries if not 0 <= entry.picture < len(gallery.pictures)]
    if wrong:
        raise FormatError(f"{place} has picture {wrong[0]} of {len(gallery.pictures)}")


def _require_indices(indices, classes, place):
    wrong = [k for k in indices if not 0 <= k < classes]
    if wrong:
        raise FormatError(f"{place} has class {wrong[0]} of {classes}")


def write(path: Path, evidence: Evidence) -> None:
    """Write the file atomically."""
    files.write_text(path, json.dumps(evidence.to_json()) + "\n")
