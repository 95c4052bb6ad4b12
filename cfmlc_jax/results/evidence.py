"""What the report needs beyond results and scores: names, training labels in brief, a few pictures.

One JSON file, written by the full evaluation, so that a report can be made without the data set.
"""

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

FILE = "evidence.json"


@dataclass(frozen=True)
class Training:
    """The training labels in brief.

    images: how many.
    counts: [k][k] images that have both classes, each class's own on the diagonal.
    pairs: [m] target and context (class indices) of the strongest pairs, the strongest first.
    """

    images: int
    counts: list[list[int]]
    pairs: list[list[int]]


@dataclass(frozen=True)
class ExampleClass:
    """A class that is shown of an example.

    label: its index.
    present: whether the image has it.
    probability: of the combined prediction.
    weights: [p], shares of the patches in its evidence; None without patches.
    effect: logit less the logit without the pivot patch; None where it was not computed.
    boxes: [n][4] left, top, right, bottom as fractions of the picture.
    """

    label: int
    present: bool
    probability: float
    weights: list[float] | None
    effect: float | None
    boxes: list[list[float]]


@dataclass(frozen=True)
class Example:
    """An image that was predicted well or badly.

    id: in its data set.
    loss: mean cross-entropy over the classes, nats.
    labels: indices of the classes it has.
    width, height: of the picture that is shown, pixels.
    jpeg: its bytes, base64.
    classes: that are shown.
    """

    id: str
    loss: float
    labels: list[int]
    width: int
    height: int
    jpeg: str
    classes: list[ExampleClass]


@dataclass(frozen=True)
class Evidence:
    """Everything in the file.

    config: of the evaluation, as JSON types.
    checkpoint: name of what was evaluated.
    class_names: in label order.
    training: None where the training labels were not at hand, and then `missing` says why.
    cells: [p][4] left, top, right, bottom of the patches as fractions; None without patches.
    examples: by split, "best" and "worst".
    class_counts: training images of each class, of single-label images; None where they have several,
        or the numbers are not known.
    """

    config: dict[str, Any]
    checkpoint: str
    class_names: list[str]
    training: Training | None
    missing: str
    cells: list[list[float]] | None
    examples: Annotated[dict[str, dict[str, list[Example]]], Formerly("exhibits")]
    class_counts: list[int] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return json_types.fields_to_json(self)

    @classmethod
    def from_json(cls, value: Any, place: str = "it") -> Self:
        """The evidence of `to_json`, also one that an older version wrote.

        Raises:
            FormatError: a field that is missing or of another type, or that does not fit the others.
        """
        fields = json_types.fields_from_json(cls, value, place)
        evidence = cls(**fields | {"config": configs.translated(fields["config"])})
        evidence._require_consistent()
        return evidence

    def _require_consistent(self):
        """Raise unless indices and shapes fit each other."""
        classes = len(self.class_names)
        effect = json_types.require_object(self.config.get("effect"), "config.effect")
        json_types.from_json(list[float], effect.get("alphas"), "config.effect.alphas")
        if self.class_counts is not None and len(self.class_counts) != classes:
            raise FormatError(f"it has {len(self.class_counts)} class_counts of {classes} classes")
        if self.training is not None:
            _require_training(self.training, classes)
        for example in self._every_example():
            _require_example(example, classes, len(self.cells or []))

    def _every_example(self) -> Iterator[Example]:
        for kinds in self.examples.values():
            for examples in kinds.values():
                yield from examples


def _require_training(training: Training, classes):
    rows = {len(row) for row in training.counts}
    if len(training.counts) != classes or rows - {classes} or training.images < 1:
        raise FormatError(f"training.counts are not those of {classes} classes")
    if any(len(pair) != 2 for pair in training.pairs):
        raise FormatError("training.pairs are not all of two classes")
    _require_indices([k for pair in training.pairs for k in pair], classes, "training.pairs")


def _require_example(example: Example, classes, patches):
    place = f"the example {example.id}"
    _require_indices([*example.labels, *(shown.label for shown in example.classes)], classes, place)
    for shown in example.classes:
        if shown.weights is not None and len(shown.weights) != patches:
            raise FormatError(f"{place} has {len(shown.weights)} weights of {patches} patches")
        if np.shape(shown.boxes) not in ((0,), (len(shown.boxes), 4)):
            raise FormatError(f"{place} has a box that is not left, top, right, bottom")


def _require_indices(indices, classes, place):
    wrong = [k for k in indices if not 0 <= k < classes]
    if wrong:
        raise FormatError(f"{place} has class {wrong[0]} of {classes}")


def write(path: Path, evidence: Evidence) -> None:
    """Replace the file, whole or not at all."""
    files.write_text(path, json.dumps(evidence.to_json()) + "\n")
