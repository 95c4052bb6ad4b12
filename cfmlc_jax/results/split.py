"""The parts of a split's results that are common to all tasks."""

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from cfmlc_jax.results import json_types
from cfmlc_jax.results.predictions import Prediction

# The evaluated sets of weights, by their names in files, with their names in text.
WEIGHTS = {"weights": "raw weights", "average": "averaged weights"}
AVERAGE = "average"
_GAIN = "gain_"


class Ends(NamedTuple):
    """The ends of an interval, percent."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value and the ends of its interval, percent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PredictionIntervals:
    """Intervals of one prediction.

    metrics: by metric.
    gains: of the differences from the baseline on the same images; by metric, for "mAP_sklearn" and
        "mAP_voc" by "sklearn" and "voc".
    """

    metrics: dict[str, Ends]
    gains: dict[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """{metric: [low, high], "gain_<…>": [value, low, high]}."""
        gains = {f"{_GAIN}{name}": list(gain) for name, gain in self.gains.items()}
        return {name: list(ends) for name, ends in self.metrics.items()} | gains

    @classmethod
    def from_json(cls, value: Any, place: str) -> Self:
        """The intervals that `to_json` wrote."""
        entries = json_types.require_object(value, place)
        gains = {name: entry for name, entry in entries.items() if name.startswith(_GAIN)}
        metrics = {name: entry for name, entry in entries.items() if name not in gains}
        read_gains = json_types.from_json(dict[str, Estimate], gains, place)
        return cls(
            json_types.from_json(dict[str, Ends], metrics, place),
            {name.removeprefix(_GAIN): gain for name, gain in read_gains.items()},
        )


@dataclass(frozen=True)
class Intervals:
    """Bootstrap intervals over images.

    level: confidence level.
    resamples: number of resamples.
    predictions: the intervals, by prediction.
    """

    level: float
    resamples: int
    predictions: dict[Prediction, PredictionIntervals]


@dataclass(frozen=True)
class RuleOfThumb:
    """The strength alpha for which alpha·cos is 1 (`metrics.rule_of_thumb`).

    mean_cosine: of the features with the mean feature, over the split.
    alpha: NaN if there is none.
    """

    mean_cosine: float
    alpha: float


MeasuresT = TypeVar("MeasuresT")
FindingsT = TypeVar("FindingsT")


@dataclass(frozen=True)
class SplitResults(Generic[MeasuresT, FindingsT]):
    """The results of a split.

    measures: metrics, by set of weights (`WEIGHTS`).
    findings: further results, of the averaged weights only.
    """

    measures: dict[str, MeasuresT]
    findings: FindingsT

    # Dataclasses of measures and findings.
    measures_type: ClassVar[type]
    findings_type: ClassVar[type]

    def to_json(self) -> dict[str, Any]:
        """{"weights": measures, "average": measures and findings}, without findings that few runs have."""
        findings = json_types.to_json(self.findings)
        for name in ("rule_of_thumb", "decisions"):
            if findings.get(name, ...) is None:
                del findings[name]
        measures = json_types.to_json(self.measures)
        return measures | {AVERAGE: measures[AVERAGE] | findings}

    @classmethod
    def from_json(cls, value: Any, place: str) -> Self:
        """The results that `to_json` of this or an older version wrote.

        Raises:
            FormatError: a field is missing or has another type, or a prediction lacks a metric.
        """
        entries = json_types.require_object(value, place)
        measures = {}
        for name in WEIGHTS:
            json_types.require_keys(entries, [name], place)
            measures[name] = json_types.from_json(cls.measures_type, entries[name], f"{place}.{name}")
        results = cls(
            measures,
            json_types.from_json(cls.findings_type, entries[AVERAGE], f"{place}.{AVERAGE}"),
        )
        results.require_complete(place)
        return results

    def require_complete(self, place: str) -> None:
        """Raise unless every prediction has all metrics and findings.

        Raises:
            FormatError: names the first that is missing.
        """
        raise NotImplementedError
