"""The multi-label task: mAP, thresholded metrics, co-occurrence, localisation."""

from collections.abc import Mapping

import numpy as np

from cfmlc_jax.causal.decorrelation import decorrelate
from cfmlc_jax.causal.views import Box
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.data.sources.checks import num_unknown
from cfmlc_jax.metrics import cooccurrence, localization
from cfmlc_jax.metrics.bootstrap import weighted_mean_average_precision
from cfmlc_jax.metrics.rule_of_thumb import rule_of_thumb
from cfmlc_jax.results import multi_label, summary
from cfmlc_jax.results import scores as metric_scores
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.multi_label import Findings, MultiLabelResults
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import AVERAGE, RuleOfThumb
from cfmlc_jax.results.thresholds import Thresholds

DECORRELATED = "mAP_decorrelated"


class MultiLabel:
    """The task of multi-label classification, as in `tasks.Task`.

    Args:
        training_labels: [n, k], for co-occurrence in training; None: it is not reported.
        thresholds: above which the classes count as present, beside 0.5; None: 0.5 alone.
        val_share: below 1: validation has "mAP_decorrelated", of images with weights that make their labels independent
            of each other (`causal.decorrelation`), with this effective sample size / number; it is the selection.
    """

    class_counts = None

    def __init__(
        self,
        training_labels: np.ndarray | None,
        thresholds: Thresholds | None = None,
        *,
        val_share: float = 1.0,
    ):
        self._thresholds = thresholds
        self.training = None if training_labels is None else _training(training_labels)
        # "mAP_voc" is what the reference's training uses.
        self.selection = "mAP_voc" if val_share == 1 else DECORRELATED
        self._val_share = val_share
        self._weights: tuple[np.ndarray, np.ndarray] | None = (
            None  # of the last labels: these, and the weights
        )

    def validation(self, logits, labels) -> dict[str, float]:
        """mAP in both definitions, "sklearn" and "voc"; and "mAP_decorrelated", in the first."""
        metrics = metric_scores.mean_average_precisions(logits, labels)
        if self._val_share == 1:
            return metrics
        weights = self._validation_weights(labels)
        statistic = weighted_mean_average_precision(logits, labels, "sklearn")
        return metrics | {DECORRELATED: float(statistic(weights[None])[0])}

    def _validation_weights(self, labels):
        if self._weights is None or not np.array_equal(self._weights[0], labels):
            self._weights = labels, decorrelate(labels, self._val_share).weights
        return self._weights[1]

    def probabilities(self, logits) -> np.ndarray:
        """The sigmoid of the logits."""
        return metric_scores.probabilities(logits)

    def image_losses(self, logits, labels) -> np.ndarray:
        """The cross-entropy of every image, mean over its known classes: two [n, k] -> float64 [n]."""
        known = (np.asarray(labels) >= 0).sum(axis=1)
        return self.class_losses(logits, labels).sum(axis=1) / np.maximum(known, 1)

    def class_losses(self, logits, labels) -> np.ndarray:
        """The cross-entropy of every entry in nats, 0 if it is unknown: two [n, k] -> float64 [n, k]."""
        logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
        return np.where(labels < 0, 0.0, np.logaddexp(0, np.where(labels > 0, -logits, logits)))

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
            else multi_label.decisions(scores, alphas, AVERAGE, self._thresholds),
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
    known = cooccurrence.known_counts(labels).tolist() if num_unknown(labels) else None
    return Training(len(labels), cooccurrence.counts(labels).tolist(), pairs.tolist(), known)


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
    return multi_label.localized(pairs, class_names, relative=config.data.source not in ("coco", "coco2017"))
