"""What the report needs beyond results and scores: names, training labels in brief, a few pictures.

One JSON file, written by the full evaluation, so that a report can be made without the data set.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmlc_jax import config as configs
from cfmlc_jax import files

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
class ShownClass:
    """A class in an exhibit.

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
class Exhibit:
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
    classes: list[ShownClass]


@dataclass(frozen=True)
class Evidence:
    """Everything in the file.

    config: of the evaluation, as JSON types.
    checkpoint: name of what was evaluated.
    class_names: in label order.
    training: None where the training labels were not at hand, and then `missing` says why.
    cells: [p][4] left, top, right, bottom of the patches as fractions; None without patches.
    exhibits: by split, "best" and "worst".
    class_counts: training images of each class, of images of one label; None where they have several,
        or the numbers are not known.
    """

    config: dict[str, Any]
    checkpoint: str
    class_names: list[str]
    training: Training | None
    missing: str
    cells: list[list[float]] | None
    exhibits: dict[str, dict[str, list[Exhibit]]]
    class_counts: list[int] | None = None


def write(path: Path, evidence: Evidence) -> None:
    """Replace the file, whole or not at all."""
    files.write_text(path, json.dumps(dataclasses.asdict(evidence)) + "\n")


def parse(fields: dict[str, Any]) -> Evidence:
    """The evidence that `write` wrote.

    Raises:
        KeyError, TypeError, AttributeError: fields that are not those of an evidence.
    """
    training = fields["training"]
    return Evidence(
        **{name: fields[name] for name in ("checkpoint", "class_names", "missing", "cells")},
        config=configs.translated(fields["config"]),
        class_counts=fields.get("class_counts"),
        training=None if training is None else Training(**training),
        exhibits={
            split: {kind: [_exhibit(found) for found in of] for kind, of in kinds.items()}
            for split, kinds in fields["exhibits"].items()
        },
    )


def _exhibit(fields):
    return Exhibit(**fields | {"classes": [ShownClass(**shown) for shown in fields["classes"]]})
