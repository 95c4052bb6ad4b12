"""The task: multi-label (an image has any number of classes) or single-label (exactly one)."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cfmlc_jax.causal.views import Box
from cfmlc_jax.classify.multi_label import MultiLabel
from cfmlc_jax.classify.single_label import SingleLabel
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.thresholds import Thresholds


class Task(Protocol):
    """How predictions are scored and reported.

    selection: the metric of validation that decides the best checkpoint and early stopping.
    """

    selection: str

    @property
    def training(self) -> Training | None:
        """A summary of the training labels, for the report's co-occurrence; None if unknown or not reported."""

    @property
    def class_counts(self) -> list[int] | None:
        """Training images of each class, by which the report orders classes; None if unknown or not reported."""

    def validation(self, logits, labels) -> dict[str, float]:
        """Metrics in percent by name, of logits and labels, two [n, k]; after an epoch."""

    def probabilities(self, logits) -> np.ndarray:
        """Probabilities of logits: [n, k] -> [n, k]."""

    def image_losses(self, logits, labels) -> np.ndarray:
        """The cross-entropy of every image in nats: two [n, k] -> float64 [n]."""

    def class_losses(self, logits, labels) -> np.ndarray:
        """Values that order the classes by their part in an image's loss: two [n, k] -> [n, k]."""

    def results(
        self,
        config,
        scores: Mapping[str, Scores],
        boxes: Boxes | None,
        patch_boxes: list[Box] | None,
        class_names,
    ) -> Any:
        """The `SplitResults` of a split.

        Args:
            config: for the strengths of effects and the seed of the intervals.
            scores: by set of weights.
            boxes: annotated boxes of the split; None without.
            patch_boxes: boxes of the patches in a whole view; None without patches.
            class_names: in label order.
        """

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """A CSV with one line per class."""

    def summary(self, results: Mapping[str, Any]) -> str:
        """Markdown tables of the averaged weights, all splits."""

    def details(self, results: Mapping[str, Any]) -> str:
        """Markdown tables of the raw and the averaged weights, all splits."""


def create(
    config,
    *,
    training_labels: np.ndarray | None,
    class_counts,
    num_classes: int,
    thresholds: Thresholds | None = None,
) -> Task:
    """The task of a configuration.

    Args:
        config: `config.task` is "multi_label" or "single_label".
        training_labels: [n, k], for co-occurrence in training; None: it is not reported.
        class_counts: training images [k] of each class, for accuracy by shots; None: computed from the
            training labels, if there are any.
        num_classes: k.
        thresholds: of the multi-label task; None: 0.5.
    """
    if config.task != "single_label":
        return MultiLabel(training_labels, thresholds, val_share=config.data.decorrelate.val_share)
    if class_counts is None and training_labels is not None:
        class_counts = (training_labels > 0).sum(axis=0, dtype=np.int64)
    # NaN: a class whose count is unknown is in no shot group.
    return SingleLabel(np.full(num_classes, np.nan) if class_counts is None else np.asarray(class_counts))
