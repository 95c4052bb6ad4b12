"""Results of the single-label task on a split; all metrics in percent."""

from dataclasses import dataclass

import numpy as np

from cfmlc_jax.metrics import shots
from cfmlc_jax.metrics.bootstrap import Statistic, interval, mean_of_defined, ratio, values_and_gains
from cfmlc_jax.results.json_types import require_keys
from cfmlc_jax.results.predictions import COMBINED, WHOLE, Prediction
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import (
    WEIGHTS,
    Ends,
    Estimate,
    Intervals,
    PredictionIntervals,
    RuleOfThumb,
    SplitResults,
)
from cfmlc_jax.results.tables import csv_line

METRICS = ("top1", "many", "medium", "few", "macro_F1")
# The metrics that have an interval.
MEASURED = ("top1", "many", "medium", "few")
LEVEL, RESAMPLES = 0.95, 200
BASELINE = WHOLE


@dataclass(frozen=True)
class Measures:
    """`METRICS` of one set of weights, by prediction."""

    metrics: dict[Prediction, dict[str, float]]


@dataclass(frozen=True)
class Findings:
    """Further results, of the averaged weights only.

    intervals: of `MEASURED`, and of their gains over `BASELINE`, by metric.
    rule_of_thumb: None without a mean feature.
    """

    intervals: Intervals
    rule_of_thumb: RuleOfThumb | None = None


@dataclass(frozen=True)
class SingleLabelResults(SplitResults[Measures, Findings]):
    """The results of a split in the single-label task."""

    measures_type = Measures
    findings_type = Findings

    def require_complete(self, place: str) -> None:
        """Raise unless every prediction has metrics and intervals."""
        for weights in WEIGHTS:
            for prediction, values in self.measures[weights].metrics.items():
                require_keys(values, METRICS, f"{place}.{weights}.metrics.{prediction}")
        predictions, inside = self.measures["average"].metrics, f"{place}.average.intervals.predictions"
        require_keys(self.findings.intervals.predictions, predictions, inside)
        for prediction in predictions:
            prediction_intervals = self.findings.intervals.predictions[prediction]
            require_keys(prediction_intervals.metrics, MEASURED, f"{inside}.{prediction}")
            require_keys(prediction_intervals.gains, MEASURED, f"{inside}.{prediction}.gain")


def predictions(scores: Scores, alphas) -> dict[Prediction, np.ndarray]:
    """The logits [n, k] of "whole" and of each effect. "combined" equals "whole" without patches, so it is left out."""
    return {
        prediction: logits
        for prediction, logits in scores.predictions(alphas).items()
        if prediction != COMBINED
    }


def summarise(scores: Scores, alphas, counts) -> dict[Prediction, dict[str, float]]:
    """`METRICS` of every prediction (`shots.shots`); NaN for a shot group without classes.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        counts: training images of each class, [k].
    """
    labels = scores.labels.argmax(axis=1)
    return {
        prediction: accuracies(logits, labels, counts)
        for prediction, logits in predictions(scores, alphas).items()
    }


def accuracies(logits, labels, counts) -> dict[str, float]:
    """`METRICS` of logits [n, k] for true classes [n]; equal logits count for the first class."""
    return shots.shots(logits.argmax(axis=1), labels, counts)


def probabilities(logits):
    """The softmax of float32 logits over classes: [n, k] -> [n, k]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(logits.dtype)


def intervals(scores: Scores, alphas, counts, generator: np.random.Generator) -> Intervals:
    """Bootstrap intervals over images, for `MEASURED` of each prediction and their gains over `BASELINE`.

    A shot group has no interval if a resample has no image of it.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        counts: training images of each class, [k].
        generator: for the bootstrap.
    """
    labels = scores.labels.argmax(axis=1)
    logits = predictions(scores, alphas)
    statistics = [_accuracy_statistic(each.argmax(axis=1), labels, counts) for each in logits.values()]
    statistic, (least, most) = values_and_gains(statistics, list(logits).index(BASELINE))
    both = interval(
        statistic,
        len(labels),
        generator=generator,
        resamples=RESAMPLES,
        level=LEVEL,
        bounds=(least[:, None], most),
    )

    def values(row, column):
        return (float(part[row, column]) for part in both)

    by_prediction = {}
    for row, prediction in enumerate(logits):
        ends = {name: Estimate(*values(row, column)) for column, name in enumerate(MEASURED)}
        gains = {name: Estimate(*values(len(logits) + row, column)) for column, name in enumerate(MEASURED)}
        by_prediction[prediction] = PredictionIntervals(
            {name: Ends(low, high) for name, (_, low, high) in ends.items()}, gains
        )
    return Intervals(LEVEL, RESAMPLES, by_prediction)


def _accuracy_statistic(predicted, labels, counts) -> Statistic:
    """A function from image weights of r resamples [r, n] to `MEASURED` in percent [r, 4], as in `shots.shots`."""
    counts = np.asarray(counts)
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    hits = (predicted == labels)[order].astype(np.float64)
    members = [shots.group(counts, name)[present] for name in ("many", "medium", "few")]

    def statistic(weights):
        weights = weights[:, order]
        per_class = np.add.reduceat(weights, starts, axis=1)
        correct = np.add.reduceat(weights * hits[None], starts, axis=1)
        accuracy = ratio(correct, per_class)
        columns = [correct.sum(axis=1) / per_class.sum(axis=1)]
        columns += [mean_of_defined(accuracy[:, group]) for group in members]
        return 100 * np.stack(columns, axis=1)

    return statistic


def per_class_csv(scores: Scores, alphas, counts, class_names) -> str:
    """A CSV with one line per class: images in training and in the split, and each prediction's accuracy in percent."""
    labels = scores.labels.argmax(axis=1)
    columns = {
        f"accuracy_{prediction}": 100
        * shots.per_class_accuracy(logits.argmax(axis=1), labels, len(class_names))
        for prediction, logits in predictions(scores, alphas).items()
    }
    lines = [csv_line(["class", "training_images", "images", *columns])]
    images = np.bincount(labels, minlength=len(class_names))
    for k, name in enumerate(class_names):
        values = (f"{column[k]:.4f}" for column in columns.values())
        lines.append(csv_line([name, int(counts[k]), int(images[k]), *values]))
    return "".join(lines)
