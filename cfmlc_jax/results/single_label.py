"""Results of a split whose images have one label each; all numbers in percent."""

import csv
import io
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

METRICS = ("top1", "many", "medium", "few", "macro_F1")
# Those with an interval.
MEASURED = ("top1", "many", "medium", "few")
LEVEL, RESAMPLES = 0.95, 200
BASELINE = WHOLE


@dataclass(frozen=True)
class Measures:
    """`METRICS` of every prediction of one set of weights."""

    metrics: dict[Prediction, dict[str, float]]


@dataclass(frozen=True)
class Findings:
    """Further results of the averaged weights.

    intervals: of `MEASURED`, and of their gains over `BASELINE`, by metric.
    rule_of_thumb: None without a mean feature.
    """

    intervals: Intervals
    rule_of_thumb: RuleOfThumb | None = None


@dataclass(frozen=True)
class SingleLabelResults(SplitResults[Measures, Findings]):
    """The results of a single-label split."""

    measures_type = Measures
    findings_type = Findings

    def require_complete(self, place: str) -> None:
        """Raise unless every prediction has its metrics and their intervals."""
        for weights in WEIGHTS:
            for prediction, values in self.measures[weights].metrics.items():
                require_keys(values, METRICS, f"{place}.{weights}.metrics.{prediction}")
        predictions, inside = self.measures["average"].metrics, f"{place}.average.intervals.predictions"
        require_keys(self.findings.intervals.predictions, predictions, inside)
        for prediction in predictions:
            own = self.findings.intervals.predictions[prediction]
            require_keys(own.metrics, MEASURED, f"{inside}.{prediction}")
            require_keys(own.gains, MEASURED, f"{inside}.{prediction}.gain")


def predictions(scores: Scores, alphas) -> dict[Prediction, np.ndarray]:
    """Logits [n, k] of "whole" and of each effect; without patches "combined" is "whole"."""
    return {
        prediction: logits
        for prediction, logits in scores.predictions(alphas).items()
        if prediction != COMBINED
    }


def summarise(scores: Scores, alphas, counts) -> dict[Prediction, dict[str, float]]:
    """`METRICS` of every prediction (`shots.shots`); NaN where a group has no class.

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
    """`METRICS` of logits [n, k] for true classes [n]; of tied logits the first class is taken."""
    return shots.shots(logits.argmax(axis=1), labels, counts)


def probabilities(logits):
    """Softmax of float32 logits [n, k] over the classes."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(logits.dtype)


def intervals(scores: Scores, alphas, counts, generator: np.random.Generator) -> Intervals:
    """Bootstrap intervals over images of each prediction's `MEASURED`, and of their gains over `BASELINE`.

    A group that a resample leaves without an image has no interval.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        counts: training images of each class, [k].
        generator: of the bootstrap's draws.
    """
    labels = scores.labels.argmax(axis=1)
    logits = predictions(scores, alphas)
    statistics = [_accuracies_of(own.argmax(axis=1), labels, counts) for own in logits.values()]
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


def _accuracies_of(predicted, labels, counts) -> Statistic:
    """The statistic weights [r, n] -> `MEASURED` in percent [r, 4], by class as `shots.shots` has it."""
    counts = np.asarray(counts)
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    hits = (predicted == labels)[order].astype(np.float64)
    members = [shots.group(counts, name)[present] for name in ("many", "medium", "few")]

    def statistic(weights):
        weights = weights[:, order]
        per_class = np.add.reduceat(weights, starts, axis=1)
        right = np.add.reduceat(weights * hits[None], starts, axis=1)
        accuracy = ratio(right, per_class)
        columns = [right.sum(axis=1) / per_class.sum(axis=1)]
        columns += [mean_of_defined(accuracy[:, group]) for group in members]
        return 100 * np.stack(columns, axis=1)

    return statistic


def per_class_csv(scores: Scores, alphas, counts, class_names) -> str:
    """One line per class: images of training and of the split and, in percent, every prediction's accuracy."""
    labels = scores.labels.argmax(axis=1)
    columns = {
        f"accuracy_{prediction}": 100
        * shots.per_class_accuracy(logits.argmax(axis=1), labels, len(class_names))
        for prediction, logits in predictions(scores, alphas).items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "training_images", "images", *columns])
    images = np.bincount(labels, minlength=len(class_names))
    for k, name in enumerate(class_names):
        writer.writerow(
            [name, int(counts[k]), int(images[k]), *(f"{column[k]:.4f}" for column in columns.values())]
        )
    return text.getvalue()
