"""What a run of a counterfactual generative network writes besides its checkpoints: names of files, and their content."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Folder of the sheets in a workdir, and the sheets at the end of training, in the order in which they are shown.
FOLDER = "sheets"
SHEETS = (
    "mechanisms",
    "exchanged_texture",
    "exchanged_background",
    "interpolated_labels",
    "interpolated_noise",
)
# Folder of the generated records in a workdir.
RECORDS = "counterfactuals"
# File of the classifiers' accuracies in the folder of a report.
ACCURACIES = "mechanisms.json"


def sheet_file(name: str) -> str:
    """The file name of a sheet, a name of `SHEETS`."""
    return f"{name}.png"


def epoch_file(epoch: int) -> str:
    """The file name of the sheet after an epoch, counted from 1."""
    return f"epoch-{epoch:03d}.png"


def epoch_of(name: str) -> int | None:
    """The epoch of a file name; None if it is not of the sheet after an epoch."""
    match = re.fullmatch(r"epoch-(\d{3,})\.png", name)
    return None if match is None else int(match[1])


@dataclass(frozen=True)
class Accuracies:
    """How often a classifier is right, and which cue it follows, in percent; NaN where no image counts.

    test_iid: on the test split in which mechanisms agree, as in training.
    test: on the test split in which they are independent.
    follows: {mechanism: percentage of `test` whose predicted class is the label of the mechanism}.
    errors_follow: the same among the wrongly classified images, of the other mechanisms.
    train: on images that it was trained on; NaN in files of older versions.
    """

    test_iid: float
    test: float
    follows: dict[str, float]
    errors_follow: dict[str, float]
    train: float = float("nan")


@dataclass(frozen=True)
class Picture:
    """A PNG file.

    width, height: in pixels.
    """

    data: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Stages:
    """What the stages of a run have written so far.

    num_epochs: of the whole training.
    names: of all classifiers that the run trains.
    epochs: sheets after epochs, by epoch in their order.
    sheets: those at the end of training, by name.
    generated: whether the counterfactual records are complete.
    accuracies: of the classifiers that are evaluated.
    classifiers: those that have a workdir with a log or an evaluation.
    """

    num_epochs: int
    names: tuple[str, ...]
    epochs: Mapping[int, Picture]
    sheets: Mapping[str, Picture]
    generated: bool
    accuracies: Mapping[str, Accuracies]
    classifiers: tuple[str, ...]
