"""Scores of a split as a file that other programs read: CSV, or NumPy's .npz."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.results.tables import csv_line

SUFFIXES = (".csv", ".npz")


@dataclass(frozen=True)
class ScoredSplit:
    """The scores of the n images of a split.

    files: their paths; ids, where the data set has no files.
    class_names: k.
    labels: uint8 [n, k].
    scores: probabilities float32 [n, k].
    thresholds: float32 [k], above which a class is present; None for the single-label task.
    """

    files: Sequence[str]
    class_names: Sequence[str]
    labels: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray | None


def require_suffix(path: Path) -> None:
    """Raise unless the suffix names a format.

    Raises:
        InputError: it does not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out={path} ends with neither of {', '.join(SUFFIXES)}")


def write(path: Path, scored: ScoredSplit) -> None:
    """Write the file, atomically, in the format that its suffix names.

    Raises:
        WriteError: it cannot be written.
    """
    require_suffix(path)
    if path.suffix.lower() == ".csv":
        files.write_text(path, as_csv(scored))
        return
    arrays = {
        "files": np.array(list(scored.files)),
        "class_names": np.array(list(scored.class_names)),
        "labels": scored.labels,
        "scores": scored.scores,
    }
    files.write_npz(
        path, **arrays, **({} if scored.thresholds is None else {"thresholds": scored.thresholds})
    )


def as_csv(scored: ScoredSplit) -> str:
    """The text of a CSV file: a line for each image, with the columns file, label:<class> … and score:<class> …."""
    titles = [f"{kind}:{printable(name)}" for kind in ("label", "score") for name in scored.class_names]
    lines = [csv_line(["file", *titles])]
    for file, present, probabilities in zip(scored.files, scored.labels.tolist(), scored.scores.tolist()):
        numbers = (f"{probability:.7g}" for probability in probabilities)
        lines.append(csv_line([printable(file), *present, *numbers]))
    return "".join(lines)
