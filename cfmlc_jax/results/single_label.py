"""What a report says of a split whose images have one label each, as JSON types; all numbers in percent."""

import csv
import io

import numpy as np

from cfmlc_jax.metrics import shots
from cfmlc_jax.metrics.bootstrap import Statistic, interval, mean_of_defined, ratio, values_and_gains
from cfmlc_jax.results.scores import Scores

METRICS = ("top1", "many", "medium", "few", "macro_F1")
# Those with an interval.
MEASURED = ("top1", "many", "medium", "few")
LEVEL, RESAMPLES = 0.95, 200
BASELINE = "whole"


def predictions(scores: Scores, alphas) -> dict[str, np.ndarray]:
    """Logits [n, k] of "whole" and of each effect; without patches "combined" is "whole"."""
    return {name: x for name, x in scores.predictions(alphas).items() if name != "combined"}


def summarise(scores: Scores, alphas, counts) -> dict[str, dict[str, float]]:
    """`METRICS` of every prediction (`shots.shots`); NaN where a group has no class.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        counts: training images of each class, [k].
    """
    labels = scores.labels.argmax(axis=1)
    return {name: accuracies(logits, labels, counts) for name, logits in predictions(scores, alphas).items()}


def accuracies(logits, labels, counts) -> dict[str, float]:
    """`METRICS` of logits [n, k] for true classes [n]; of tied logits the first class is taken."""
    return shots.shots(logits.argmax(axis=1), labels, counts)


def probabilities(logits):
    """Softmax of float32 logits [n, k] over the classes."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(logits.dtype)


def intervals(scores: Scores, alphas, counts, generator: np.random.Generator) -> dict:
    """Bootstrap intervals over images of each prediction's `MEASURED`, and of their gains over `BASELINE`.

    {"level", "resamples", "predictions": {name: {"top1": [low, high], …, "gain_top1": [value, low,
    high], …}}}. A group that a resample leaves without an image has no interval.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        counts: training images of each class, [k].
        generator: of the bootstrap's draws.
    """
    labels = scores.labels.argmax(axis=1)
    logits = predictions(scores, alphas)
    statistics = [_accuracies_of(of.argmax(axis=1), labels, counts) for of in logits.values()]
    statistic, (least, most) = values_and_gains(statistics, list(logits).index(BASELINE))
    both = interval(
        statistic,
        len(labels),
        generator=generator,
        resamples=RESAMPLES,
        level=LEVEL,
        bounds=(least[:, None], most),
    )
    found: dict[str, dict] = {name: {} for name in logits}
    for row, name in enumerate(logits):
        for column, metric in enumerate(MEASURED):
            found[name][metric] = [float(part[row, column]) for part in both[1:]]
            gain = [float(part[len(logits) + row, column]) for part in both]
            found[name][f"gain_{metric}"] = gain
    return {"level": LEVEL, "resamples": RESAMPLES, "predictions": found}


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
        columns += [mean_of_defined(accuracy[:, of]) for of in members]
        return 100 * np.stack(columns, axis=1)

    return statistic


def per_class_csv(scores: Scores, alphas, counts, class_names) -> str:
    """One line per class: images of training and of the split and, in percent, every prediction's accuracy."""
    labels = scores.labels.argmax(axis=1)
    columns = {
        f"accuracy_{name}": 100 * shots.per_class_accuracy(logits.argmax(axis=1), labels, len(class_names))
        for name, logits in predictions(scores, alphas).items()
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
