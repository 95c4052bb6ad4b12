"""What is asked of an image: which of the classes are in it, or which one it is of."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cfmlc_jax.causal.views import Box
from cfmlc_jax.classify.multi_label import MultiLabel
from cfmlc_jax.classify.single_label import SingleLabel
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.scores import Scores


class Task(Protocol):
    """How predictions are scored, and how that is reported.

    selection: the metric of validation that chooses the best checkpoint and stops early.
    """

    selection: str

    @property
    def training(self) -> Training | None:
        """The training labels in brief, where the report shows their co-occurrence and they are known."""

    @property
    def class_counts(self) -> list[int] | None:
        """Training images of each class, where the report orders classes by them and they are known."""

    def validation(self, logits, labels) -> dict[str, float]:
        """Metrics in percent of two [n, k], after an epoch."""

    def probabilities(self, logits) -> np.ndarray:
        """Of logits [n, k] -> [n, k]."""

    def image_losses(self, logits, labels) -> np.ndarray:
        """Cross-entropy of every image, nats: two [n, k] -> float64 [n]."""

    def class_losses(self, logits, labels) -> np.ndarray:
        """How much each class has to do with an image's loss: two [n, k] -> [n, k], for their order."""

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
            config: strengths of effects, seed of the intervals.
            scores: by set of weights.
            boxes: of the split; None without.
            patch_boxes: boxes of the patches in a whole view; None without patches.
            class_names: in label order.
        """

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """A line for every class."""

    def summary(self, results: Mapping[str, Any]) -> str:
        """Markdown tables of the averaged weights on every split."""

    def details(self, results: Mapping[str, Any]) -> str:
        """Markdown tables of both sets of weights on every split."""


def create(config, *, training_labels: np.ndarray | None, class_counts, num_classes: int) -> Task:
    """The task of a configuration.

    Args:
        config: says how many labels an image has (`config.task`).
        training_labels: [n, k], for the co-occurrence that was learnt; None leaves that out.
        class_counts: training images [k] of each class, for accuracy by shots; None: those of the
            training labels, or unknown.
        num_classes: k.
    """
    if config.task != "single_label":
        return MultiLabel(training_labels)
    if class_counts is None and training_labels is not None:
        class_counts = training_labels.sum(axis=0, dtype=np.int64)
    # No class of an unknown number of images is in any group.
    return SingleLabel(np.full(num_classes, np.nan) if class_counts is None else np.asarray(class_counts))
