"""The logits of a split, and the metrics that are computed from them."""

import dataclasses

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.causal import effects
from cfmlc_jax.results.predictions import Prediction, counterfactual_of, effect_of
from cfmlc_jax.results.tables import csv_line


@dataclasses.dataclass(frozen=True)
class Scores:
    """The outputs of one set of weights on one split.

    logits: float32 [n, k] by name: "whole", "patch", "combined", …, and "null_<kind>" (counterfactual).
    labels: uint8 [n, k]; or int8 with −1 for unknown entries, which no metric counts.
    attention: float16 [n, p, k], attention logits of the patches; None without patches, or if they are too many.
    pivot: int32 [n, k], the patch with the most attention; None without patches.
    cosine: float32 [n], of the features with the mean feature; None without one.
    """

    logits: dict[str, np.ndarray]
    labels: np.ndarray
    attention: np.ndarray | None = None
    pivot: np.ndarray | None = None
    cosine: np.ndarray | None = None

    @property
    def counterfactuals(self) -> dict[str, np.ndarray]:
        """The counterfactual logits [n, k] by kind: "whole", "pivot", "owner", "feature"."""
        kinds = {name: counterfactual_of(name) for name in self.logits}
        return {kind: self.logits[name] for name, kind in kinds.items() if kind is not None}

    def effect(self, counterfactual: str, alpha: float) -> np.ndarray:
        """The logits [n, k] of the total direct effect that subtracts a kind of counterfactual."""
        return effects.total_direct_effect(
            self.logits["combined"], self.counterfactuals[counterfactual], alpha
        )

    def of(self, prediction: Prediction) -> np.ndarray:
        """The logits [n, k] of a prediction."""
        if prediction.counterfactual is None or prediction.alpha is None:
            return self.logits[prediction.kind]
        return self.effect(prediction.counterfactual, prediction.alpha)

    def predictions(self, alphas) -> dict[Prediction, np.ndarray]:
        """The logits [n, k] of every prediction: the factual ones, and each effect at each strength."""
        factual = {
            Prediction(name): logits
            for name, logits in self.logits.items()
            if counterfactual_of(name) is None
        }
        return factual | {
            effect_of(kind, alpha): self.effect(kind, alpha)
            for kind in self.counterfactuals
            for alpha in alphas
        }


def summarise(scores: Scores, alphas) -> dict[Prediction, dict[str, float]]:
    """Metrics in percent of every prediction: both mAPs; precision, recall and F1 at threshold 0.5."""
    return {
        prediction: mean_average_precisions(logits, scores.labels)
        | metrics.thresholded(probabilities(logits), scores.labels, 0.5)
        for prediction, logits in scores.predictions(alphas).items()
    }


def mean_average_precisions(logits, labels) -> dict[str, float]:
    """Mean average precision in percent by definition: "mAP_sklearn", "mAP_voc"."""
    return {
        f"mAP_{definition}": metrics.mean_average_precision(logits, labels, definition)
        for definition in metrics.AP_DEFINITIONS
    }


def probabilities(logits):
    """The sigmoid of float32 logits, computed without overflow: [n, k] -> [n, k]."""
    return (0.5 * (1 + np.tanh(0.5 * logits))).astype(logits.dtype)


def sweep(scores: Scores, alphas) -> dict[Prediction, dict[str, dict[str, float]]]:
    """CP CR CF1 OP OR OF1 in percent by prediction, at thresholds 0.5, 0.55, … 0.95 and for "top3"."""
    return {
        prediction: {
            f"{t:.2f}": metrics.thresholded(probabilities(logits), scores.labels, t)
            for t in metrics.THRESHOLDS
        }
        | {"top3": metrics.precision_recall(metrics.top_k(logits, 3), scores.labels)}
        for prediction, logits in scores.predictions(alphas).items()
    }


def per_class_csv(scores: Scores, alphas, class_names) -> str:
    """A CSV with one line per class: positives, and the AP in percent of every prediction in both definitions.

    If labels are unknown, their number is the third column.
    """
    columns = {
        f"AP_{definition}_{prediction}": 100 * metrics.average_precision(logits, scores.labels, definition)
        for prediction, logits in scores.predictions(alphas).items()
        for definition in metrics.AP_DEFINITIONS
    }
    counts = {"positives": (scores.labels > 0).sum(axis=0)}
    if (scores.labels < 0).any():
        counts["unknown"] = (scores.labels < 0).sum(axis=0)
    lines = [csv_line(["class", *counts, *columns])]
    for k, name in enumerate(class_names):
        numbers = [int(each[k]) for each in counts.values()]
        lines.append(csv_line([name, *numbers, *(f"{ap[k]:.4f}" for ap in columns.values())]))
    return "".join(lines)
