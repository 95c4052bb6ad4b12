"""The single-label task: accuracy over all images, and by the number of training images of a class."""

from collections.abc import Mapping

import numpy as np

from cfmlc_jax.causal.views import Box
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.metrics.rule_of_thumb import rule_of_thumb
from cfmlc_jax.results import single_label, summary
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.single_label import Findings, Measures, SingleLabelResults
from cfmlc_jax.results.split import AVERAGE, RuleOfThumb


class SingleLabel:
    """The task of single-label classification by a softmax, as in `tasks.Task`.

    Args:
        class_counts: training images [k] of each class; NaN where unknown.
    """

    selection = "top1"
    training = None

    def __init__(self, class_counts: np.ndarray):
        self._counts = class_counts

    @property
    def class_counts(self) -> list[int] | None:
        """Training images of each class; None if unknown."""
        return None if np.isnan(self._counts).any() else [int(count) for count in self._counts]

    def validation(self, logits, labels) -> dict[str, float]:
        """The accuracies `single_label.METRICS` of logits, percent."""
        return single_label.accuracies(logits, np.asarray(labels).argmax(axis=1), self._counts)

    def probabilities(self, logits) -> np.ndarray:
        """The softmax of the logits over classes."""
        return single_label.probabilities(logits)

    def image_losses(self, logits, labels) -> np.ndarray:
        """The cross-entropy of every image's class: two [n, k] -> float64 [n]."""
        logits = np.asarray(logits, np.float64)
        largest = logits.max(axis=1)
        normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        return normaliser - (logits * (np.asarray(labels) > 0)).sum(axis=1)

    def class_losses(self, logits, labels) -> np.ndarray:
        """The logits: the class with the highest is the one that the image is mistaken for."""
        return np.asarray(logits)

    def results(
        self,
        config,
        scores: Mapping[str, Scores],
        boxes: Boxes | None,
        patch_boxes: list[Box] | None,
        class_names,
    ) -> SingleLabelResults:
        """Accuracies of both sets of weights; intervals and the rule of thumb for alpha of the averaged weights."""
        alphas, averaged = config.effect.alphas, scores[AVERAGE]
        generator = np.random.default_rng(config.seed)
        return SingleLabelResults(
            {
                name: Measures(single_label.summarise(scored, alphas, self._counts))
                for name, scored in scores.items()
            },
            Findings(
                intervals=single_label.intervals(averaged, alphas, self._counts, generator),
                rule_of_thumb=None
                if averaged.cosine is None
                else RuleOfThumb(**rule_of_thumb(averaged.cosine)),
            ),
        )

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """A CSV of the accuracy of every class."""
        return single_label.per_class_csv(scores, alphas, self._counts, class_names)

    def summary(self, results: Mapping[str, SingleLabelResults]) -> str:
        """Markdown tables of accuracies on all splits, and of the rule of thumb."""
        return summary.single_label_summary(results)

    def details(self, results: Mapping[str, SingleLabelResults]) -> str:
        """Markdown tables of the accuracies of the raw and the averaged weights."""
        return summary.single_label_details(results)
