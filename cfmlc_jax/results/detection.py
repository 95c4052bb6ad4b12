"""The results of a classifier of regions: average precision of boxes by prediction, as the evaluation wrote them."""

from dataclasses import dataclass
from typing import Any

from cfmlc_jax.results import json_types
from cfmlc_jax.results.predictions import Prediction

FILE = "detection.json"
# Of the prediction that the run is configured for, in the form of results that LVIS' own program reads.
DETECTIONS = "detections.json"


@dataclass(frozen=True)
class ClassPrecision:
    """A class: its name and frequency, its annotated boxes in the scored split, and its AP in percent by prediction.

    precision: empty for a class without boxes.
    """

    name: str
    frequency: str
    boxes: int
    precision: dict[Prediction, float]


@dataclass(frozen=True)
class DetectionResults:
    """An evaluation.

    checkpoint: its name.
    images: number of scored images.
    detections: number of detections by prediction.
    metrics: in percent by prediction: `metrics.detection.METRICS`, without those of frequencies that no class has.
    classes: in the order of the ids.
    """

    checkpoint: str
    images: int
    detections: dict[Prediction, int]
    metrics: dict[Prediction, dict[str, float]]
    classes: list[ClassPrecision]

    def to_json(self) -> dict[str, Any]:
        """The results as JSON types."""
        return json_types.fields_to_json(self)

    @classmethod
    def from_json(cls, value: Any, place: str) -> "DetectionResults":
        """The results whose `to_json` is `value`.

        Raises:
            FormatError: the value has another form.
        """
        return cls(**json_types.fields_from_json(cls, value, place))
