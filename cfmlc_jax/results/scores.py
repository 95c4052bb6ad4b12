"""Logits of a whole split, and the metrics that are read off them."""

import csv
import dataclasses
import io

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.causal import effects


@dataclasses.dataclass(frozen=True)
class Scores:
    """Predictions of one set of weights on one split.

    logits: float32 [n, k] by name: "whole", "patch", "combined" and "null_<kind>" (counterfactual).
    labels: uint8 [n, k].
    attention: float16 [n, p, k], attention logits of the patches; None without patches.
    cosine: float32 [n], of the features with the mean feature; None without one.
    """

    logits: dict[str, np.ndarray]
    labels: np.ndarray
    attention: np.ndarray | None = None
    cosine: np.ndarray | None = None

    def predictions(self, alphas) -> dict[str, np.ndarray]:
        """Logits [n, k] of every prediction: the factual ones, and "tde_<kind>_<alpha>" for each strength."""
        found = {name: x for name, x in self.logits.items() if not name.startswith("null_")}
        for name, null in self.logits.items():
            if name.startswith("null_"):
                for alpha in alphas:
                    effect = effects.total_direct_effect(self.logits["combined"], null, alpha)
                    found[f"tde_{name.removeprefix('null_')}_{alpha:g}"] = effect
        return found


def summarise(scores: Scores, alphas) -> dict[str, dict[str, float]]:
    """Metrics in percent of every prediction: both mAPs, and precision, recall, F1 at 0.5."""
    return {
        name: mean_average_precisions(logits, scores.labels)
        | metrics.thresholded(probabilities(logits), scores.labels, 0.5)
        for name, logits in scores.predictions(alphas).items()
    }


def mean_average_precisions(logits, labels) -> dict[str, float]:
    """Mean average precision in percent by definition: "mAP_sklearn", "mAP_voc"."""
    return {
        f"mAP_{definition}": metrics.mean_average_precision(logits, labels, definition)
        for definition in metrics.AP_DEFINITIONS
    }


def probabilities(logits):
    """Sigmoid of float32 logits [n, k], without overflow."""
    return (0.5 * (1 + np.tanh(0.5 * logits))).astype(logits.dtype)


def sweep(scores: Scores, alphas) -> dict[str, dict[str, dict[str, float]]]:
    """CP CR CF1 OP OR OF1 in percent, by prediction and threshold 0.5, 0.55, … 0.95, and of the "top3"."""
    return {
        name: {
            f"{t:.2f}": metrics.thresholded(probabilities(logits), scores.labels, t)
            for t in metrics.THRESHOLDS
        }
        | {"top3": metrics.precision_recall(metrics.top_k(logits, 3), scores.labels)}
        for name, logits in scores.predictions(alphas).items()
    }


def per_class_csv(scores: Scores, alphas, class_names) -> str:
    """One line per class: positives and, in percent, the AP of every prediction in both definitions."""
    predictions = scores.predictions(alphas)
    columns = {
        f"AP_{definition}_{name}": 100 * metrics.average_precision(logits, scores.labels, definition)
        for name, logits in predictions.items()
        for definition in metrics.AP_DEFINITIONS
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "positives", *columns])
    for k, name in enumerate(class_names):
        writer.writerow([name, int(scores.labels[:, k].sum()), *(f"{ap[k]:.4f}" for ap in columns.values())])
    return text.getvalue()
