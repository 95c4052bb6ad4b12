"""The multi-label task: mAP, decisions by a threshold, co-occurrence, localisation."""

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


class MultiLabel:
    """The task of multi-label classification, as in `tasks.Task`.

    Args:
        training_labels: [n, k], for the co-occurrence that was learnt; None leaves that out.
    """

    # As in the reference's training.
    selection = "mAP_voc"
    class_counts = None

    def __init__(self, training_labels: np.ndarray | None):
        self.training = None if training_labels is None else _training(training_labels)

    def validation(self, logits, labels) -> dict[str, float]:
        """Both mAPs."""
        return metric_scores.mean_average_precisions(logits, labels)

    def probabilities(self, logits) -> np.ndarray:
        """The sigmoid."""
        return metric_scores.probabilities(logits)

    def image_losses(self, logits, labels) -> np.ndarray:
        """Mean cross-entropy over the classes."""
        return self.class_losses(logits, labels).mean(axis=1)

    def class_losses(self, logits, labels) -> np.ndarray:
        """Cross-entropy of every entry, nats."""
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
        """Metrics of every set of weights; of the averaged ones intervals, context and localisation too."""
        return MultiLabelResults(
            {weights: multi_label.measures(own, config.effect.alphas) for weights, own in scores.items()},
            self._findings(config, scores[AVERAGE], boxes, patch_boxes, class_names),
        )

    def _findings(self, config, scores, boxes, patch_boxes, class_names):
        alphas, generator = config.effect.alphas, np.random.default_rng(config.seed)
        # First: the first draws are the intervals'.
        intervals = multi_label.intervals(scores, alphas, generator)
        context = None
        if self.training is not None and self.training.pairs:
            context = multi_label.context(scores, alphas, self.training.pairs, generator)
        return Findings(
            intervals=intervals,
            context=context,
            localization=_localization(config, scores, boxes, patch_boxes, class_names),
            rule_of_thumb=None if scores.cosine is None else RuleOfThumb(**rule_of_thumb(scores.cosine)),
        )

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """Average precision of every class."""
        return metric_scores.per_class_csv(scores, alphas, class_names)

    def summary(self, results: Mapping[str, MultiLabelResults]) -> str:
        """mAP, context and localisation."""
        return summary.multi_label_summary(results)

    def details(self, results: Mapping[str, MultiLabelResults]) -> str:
        """All metrics at threshold 0.5."""
        return summary.multi_label_details(results)


def _training(labels) -> Training:
    pairs = cooccurrence.strongest_pairs(labels, multi_label.PAIRS)
    return Training(len(labels), cooccurrence.counts(labels).tolist(), pairs.tolist())


def _localization(config, scores, boxes, patch_boxes, class_names):
    """What pivots hold of boxes; None without patches or boxes."""
    if patch_boxes is None or scores.attention is None or boxes is None:
        return None
    pairs = localization.localize(
        scores.attention.argmax(axis=1),
        boxes.corners,
        boxes.classes,
        boxes.images,
        boxes.sizes,
        size=config.views.image_size,
        patch_boxes=patch_boxes,
    )
    # COCO's pixels say nothing of pictures of other sizes.
    return multi_label.localized(pairs, class_names, relative=config.data.source != "coco")
