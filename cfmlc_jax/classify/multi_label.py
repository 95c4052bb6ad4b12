"""The multi-label task: mAP, thresholded metrics, co-occurrence, localisation."""

from collections.abc import Mapping

import numpy as np

from cfmlc_jax.causal.views import Box
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.metrics import cooccurrence, localization
from cfmlc_jax.metrics.rule_of_thumb import rule_of_thumb
from cfmlc_jax.results import multi_label, summary
from cfmlc_jax.results import scores as metric_scores
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.multi_label import Findings, MultiLabelResults
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import AVERAGE, RuleOfThumb
from cfmlc_jax.results.thresholds import Thresholds


class MultiLabel:
    """The task of multi-label classification, as in `tasks.Task`.

    Args:
        training_labels: [n, k], for co-occurrence in training; None: it is not reported.
        thresholds: above which the classes count as present, beside 0.5; None: 0.5 alone.
    """

    # The metric that the reference's training uses.
    selection = "mAP_voc"
    class_counts = None

    def __init__(self, training_labels: np.ndarray | None, thresholds: Thresholds | None = None):
        self._thresholds = thresholds
        self.training = None if training_labels is None else _training(training_labels)

    def validation(self, logits, labels) -> dict[str, float]:
        """mAP in both definitions, "sklearn" and "voc"."""
        return metric_scores.mean_average_precisions(logits, labels)

    def probabilities(self, logits) -> np.ndarray:
        """The sigmoid of the logits."""
        return metric_scores.probabilities(logits)

    def image_losses(self, logits, labels) -> np.ndarray:
        """The cross-entropy of every image, mean over classes: two [n, k] -> float64 [n]."""
        return self.class_losses(logits, labels).mean(axis=1)

    def class_losses(self, logits, labels) -> np.ndarray:
        """The cross-entropy of every entry in nats: two [n, k] -> float64 [n, k]."""
        logits = np.asarray(logits, np.float64)
        return np.logaddexp(0, np.where(np.asarray(labels) > 0, -logits, logits))

    def results(
        self,
        config,
        scores: Mapping[str, Scores],
        boxes: Boxes | None,
        patch_boxes: list[Box] | None,
        class_names,
    ) -> MultiLabelResults:
        """Metrics of both sets of weights; intervals, context and localisation of the averaged weights."""
        return MultiLabelResults(
            {name: multi_label.measures(scored, config.effect.alphas) for name, scored in scores.items()},
            self._findings(config, scores[AVERAGE], boxes, patch_boxes, class_names),
        )

    def _findings(self, config, scores, boxes, patch_boxes, class_names):
        alphas, generator = config.effect.alphas, np.random.default_rng(config.seed)
        # The intervals come first: the order of random draws determines the published numbers.
        intervals = multi_label.intervals(scores, alphas, generator)
        context = None
        if self.training is not None and self.training.pairs:
            context = multi_label.context(scores, alphas, self.training.pairs, generator)
        return Findings(
            intervals=intervals,
            context=context,
            localization=_localization(config, scores, boxes, patch_boxes, class_names),
            decisions=None
            if self._thresholds is None
            else multi_label.decisions(scores, AVERAGE, self._thresholds),
            rule_of_thumb=None if scores.cosine is None else RuleOfThumb(**rule_of_thumb(scores.cosine)),
        )

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """A CSV of the average precision of every class."""
        return metric_scores.per_class_csv(scores, alphas, class_names)

    def summary(self, results: Mapping[str, MultiLabelResults]) -> str:
        """Markdown tables of mAP, context and localisation."""
        return summary.multi_label_summary(results)

    def details(self, results: Mapping[str, MultiLabelResults]) -> str:
        """Markdown tables of all metrics at threshold 0.5."""
        return summary.multi_label_details(results)


def _training(labels) -> Training:
    pairs = cooccurrence.strongest_pairs(labels, multi_label.PAIRS)
    return Training(len(labels), cooccurrence.counts(labels).tolist(), pairs.tolist())


def _localization(config, scores, boxes, patch_boxes, class_names):
    """How often the pivot patch hits a box of its class; None without patches or boxes."""
    if patch_boxes is None or scores.pivot is None or boxes is None:
        return None
    pairs = localization.localize(
        scores.pivot,
        boxes.corners,
        boxes.classes,
        boxes.images,
        boxes.sizes,
        size=config.views.image_size,
        patch_boxes=patch_boxes,
    )
    # COCO defines sizes of objects in pixels; elsewhere they are relative to the image.
    return multi_label.localized(pairs, class_names, relative=config.data.source != "coco")
