"""thresholds.json: the probabilities above which each class counts as present, fitted on a validation split.

The file lies in the folder of the checkpoint whose scores it was fitted to. A folder of `weights_folder` has the same
document in its config.json. A checkpoint without one decides at 0.5.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

import cfmlc_jax
from cfmlc_jax import files, weights_folder
from cfmlc_jax.errors import InputError
from cfmlc_jax.results import json_types
from cfmlc_jax.results.json_types import FormatError
from cfmlc_jax.results.predictions import COMBINED, Prediction

FILE = "thresholds.json"
# Raised when older versions would read the file wrongly.
FORMAT = 1
FIXED = 0.5
RULES = {
    "fixed": "0.5 for every class",
    "f1": "best F1",
    "precision": "least precision",
    "rate": "rate of the training split",
}
FIT_AGAIN = "fit them again: python -m cfmlc_jax.decisions thresholds RUN"


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the classes of a checkpoint.

    rule: one of `RULES`.
    split: that they were fitted on, and its number of images.
    class_names: in label order.
    thresholds: [k] in [0, 1], by set of weights, then by prediction.
    precision: of the rule "precision"; None for others.
    fallbacks: classes for which the rule gives no threshold, by reason; of the combined prediction, averaged weights.
    """

    rule: str
    split: str
    images: int
    class_names: list[str]
    thresholds: dict[str, dict[Prediction, list[float]]]
    precision: float | None = None
    fallbacks: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Rule and split in words, such as "best F1 on val"."""
        rule = RULES[self.rule] if self.precision is None else f"precision of at least {self.precision:g}"
        return rule if self.rule == "fixed" else f"{rule} on {self.split}"

    def of(self, weights: str, prediction: Prediction) -> np.ndarray | None:
        """The thresholds float32 [k] of a set of weights and a prediction; None if these were not fitted."""
        values = self.thresholds.get(weights, {}).get(prediction)
        return None if values is None else np.array(values, np.float32)

    def without_effects(self) -> Self:
        """The same without total direct effects, for a classifier whose counterfactuals are others."""
        factual = {
            weights: {each: values for each, values in by_prediction.items() if not each.is_effect}
            for weights, by_prediction in self.thresholds.items()
        }
        return dataclasses.replace(self, thresholds=factual)

    def to_json(self) -> dict[str, Any]:
        """The content of the file, JSON values by name."""
        return {
            "format": FORMAT,
            "version": cfmlc_jax.__version__,
            **json_types.fields_to_json(self),
        }

    @classmethod
    def from_json(cls, value: Any, place: str = "it") -> Self:
        """The thresholds that `to_json` wrote.

        Raises:
            FormatError: a field is missing, or has another type or value.
        """
        entries = json_types.require_object(value, place)
        thresholds = cls(**json_types.fields_from_json(cls, entries, place))
        thresholds._require_values(place)
        return thresholds

    def _require_values(self, place):
        if self.rule not in RULES:
            raise FormatError(f"{place}.rule {self.rule!r} is not one of {', '.join(RULES)}")
        for weights, by_prediction in self.thresholds.items():
            for prediction, values in by_prediction.items():
                here = f"{place}.thresholds.{weights}.{prediction.name}"
                if len(values) != len(self.class_names):
                    raise FormatError(f"{here} has {len(values)} numbers for {len(self.class_names)} classes")
                wrong = [value for value in values if not 0 <= value <= 1]
                if wrong:
                    raise FormatError(f"{here} has {wrong[0]}, which is not a probability")


def of_class(thresholds: Thresholds | None, label: int) -> float:
    """The threshold of one class for the combined prediction of the averaged weights; 0.5 without fitted ones."""
    chosen = None if thresholds is None else thresholds.of("average", COMBINED)
    return FIXED if chosen is None else float(chosen[label])


def read(checkpoint: Path, class_names: Sequence[str] | None) -> Thresholds | None:
    """The thresholds of a checkpoint; None if it has none.

    Args:
        checkpoint: its folder, or one of `weights_folder`.
        class_names: of the checkpoint; None: not known.

    Raises:
        InputError: the file is damaged, or of other classes.
    """
    if weights_folder.is_one(checkpoint):
        value = weights_folder.read_meta(checkpoint).get("thresholds")
        return None if value is None else _parsed(checkpoint / weights_folder.CONFIG, value, class_names)
    path = checkpoint / FILE
    return read_file(path, class_names) if path.exists() else None


def read_file(path: Path, class_names: Sequence[str] | None) -> Thresholds:
    """The thresholds in a file.

    Args:
        path: of the file.
        class_names: of the classifier; None: not known.

    Raises:
        InputError: the file is missing or damaged, or of other classes.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {FIT_AGAIN}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}); {FIT_AGAIN}") from error
    return _parsed(path, value, class_names)


def _parsed(path, value, class_names):
    number = value.get("format") if isinstance(value, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise InputError(
            f"{path} has thresholds of version {value.get('version')} of cfmlc_jax, this is "
            f"{cfmlc_jax.__version__}, which cannot read them; upgrade: pip install --upgrade cfmlc_jax"
        )
    try:
        thresholds = Thresholds.from_json(value)
    except FormatError as error:
        raise InputError(f"{path} is damaged ({error}); {FIT_AGAIN}") from error
    names = thresholds.class_names
    if class_names is not None and names != list(class_names):
        raise InputError(
            f"{path} has thresholds of other classes: {_difference(names, list(class_names))}; {FIT_AGAIN}"
        )
    return thresholds


def _difference(names, expected):
    """The first difference of two lists of class names."""
    pairs = enumerate(zip(names, expected))
    differing = next((i for i, (name, wanted) in pairs if name != wanted), min(len(names), len(expected)))

    def shown(listed):
        return repr(listed[differing]) if differing < len(listed) else "none"

    number = (
        "" if len(names) == len(expected) else f"{len(names)} instead of the classifier's {len(expected)}, "
    )
    return f"{number}class {differing} is {shown(names)} instead of {shown(expected)}"


def write(checkpoint: Path, thresholds: Thresholds) -> None:
    """Write the file into the folder of a checkpoint, atomically.

    Raises:
        WriteError: it cannot be written.
        InputError: the folder is one of `weights_folder`, whose thresholds are part of another file.
    """
    if weights_folder.is_one(checkpoint):
        raise InputError(
            f"{checkpoint} is an exported folder, which is not changed; fit the thresholds of the run, then export it again"
        )
    files.write_text(checkpoint / FILE, json.dumps(thresholds.to_json(), indent=1, ensure_ascii=False) + "\n")


def remove(checkpoint: Path) -> None:
    """Remove the thresholds of a checkpoint, which then decides at 0.5."""
    (checkpoint / FILE).unlink(missing_ok=True)
