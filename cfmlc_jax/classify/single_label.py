"""The single-label task: accuracy over all images, and by how many training images a class has."""

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
    """The task of classification by a softmax, as in `tasks.Task`.

    Args:
        class_counts: training images [k] of each class; NaN where they are not known.
    """

    selection = "top1"
    training = None

    def __init__(self, class_counts: np.ndarray):
        self._counts = class_counts

    @property
    def class_counts(self) -> list[int] | None:
        """Training images of each class; None where they are not known."""
        return None if np.isnan(self._counts).any() else [int(count) for count in self._counts]

    def validation(self, logits, labels) -> dict[str, float]:
        """Accuracies of the factual prediction (`single_label.METRICS`)."""
        return single_label.accuracies(logits, np.asarray(labels).argmax(axis=1), self._counts)

    def probabilities(self, logits) -> np.ndarray:
        """The softmax over the classes."""
        return single_label.probabilities(logits)

    def image_losses(self, logits, labels) -> np.ndarray:
        """Cross-entropy of the image's class."""
        logits = np.asarray(logits, np.float64)
        largest = logits.max(axis=1)
        normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        return normaliser - (logits * (np.asarray(labels) > 0)).sum(axis=1)

    def class_losses(self, logits, labels) -> np.ndarray:
        """The logits: an image costs most for the class that it was taken for."""
        return np.asarray(logits)

    def results(
        self,
        config,
        scores: Mapping[str, Scores],
        boxes: Boxes | None,
        patch_boxes: list[Box] | None,
        class_names,
    ) -> SingleLabelResults:
        """Accuracies of every set of weights; of the averaged ones intervals and the rule of thumb for alpha too."""
        alphas, averaged = config.effect.alphas, scores[AVERAGE]
        generator = np.random.default_rng(config.seed)
        return SingleLabelResults(
            {
                weights: Measures(single_label.summarise(own, alphas, self._counts))
                for weights, own in scores.items()
            },
            Findings(
                intervals=single_label.intervals(averaged, alphas, self._counts, generator),
                rule_of_thumb=None
                if averaged.cosine is None
                else RuleOfThumb(**rule_of_thumb(averaged.cosine)),
            ),
        )

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """Accuracy of every class."""
        return single_label.per_class_csv(scores, alphas, self._counts, class_names)

    def summary(self, results: Mapping[str, SingleLabelResults]) -> str:
        """Accuracies of every split, and the rule of thumb."""
        return summary.single_label_summary(results)

    def details(self, results: Mapping[str, SingleLabelResults]) -> str:
        """Accuracies of both sets of weights."""
        return summary.single_label_details(results)
