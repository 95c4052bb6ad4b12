"""What is asked of an image: which of the classes are in it, or which one it is of."""

from typing import Protocol

import numpy as np

from cfmlc_jax.causal.views import Cell
from cfmlc_jax.classify.boxes import SplitBoxes
from cfmlc_jax.classify.multi_label import ManyLabels
from cfmlc_jax.classify.single_label import OneLabel
from cfmlc_jax.results.scores import Scores


class Task(Protocol):
    """How predictions are scored, and how that is told.

    selection: the metric of validation that chooses the best checkpoint and stops early.
    """

    selection: str

    def validation(self, logits, labels) -> dict[str, float]:
        """Metrics in percent of two [n, k], after an epoch."""

    def probabilities(self, logits) -> np.ndarray:
        """Of logits [n, k] -> [n, k]."""

    def image_losses(self, logits, labels) -> np.ndarray:
        """Cross-entropy of every image, nats: two [n, k] -> float64 [n]."""

    def blame(self, logits, labels) -> np.ndarray:
        """How much each class has to do with an image's loss: two [n, k] -> [n, k], for their order."""

    def measure(self, scores: Scores, alphas) -> dict:
        """Results of one set of weights on a split: "metrics" by prediction, and more."""

    def findings(
        self, config, scores: Scores, boxes: SplitBoxes | None, patch_cells: list[Cell] | None, class_names
    ) -> dict:
        """Further results of the averaged weights on a split."""

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """A line for every class."""

    def summary(self, results: dict) -> str:
        """Markdown tables of the averaged weights on every split."""

    def details(self, results: dict) -> str:
        """Markdown tables of both sets of weights on every split."""


def create(config, *, training_labels: np.ndarray | None, class_counts, num_classes: int) -> Task:
    """The task of a configuration.

    Args:
        config: says how many labels an image has (`config.task`).
        training_labels: [n, k], for the company that was learnt; None leaves that out.
        class_counts: training images [k] of each class, for accuracy by shots; None: those of the
            training labels, or unknown.
        num_classes: k.
    """
    if config.task != "single_label":
        return ManyLabels(training_labels)
    if class_counts is None and training_labels is not None:
        class_counts = training_labels.sum(axis=0, dtype=np.int64)
    # No class of an unknown number of images is in any group.
    return OneLabel(np.full(num_classes, np.nan) if class_counts is None else np.asarray(class_counts))
