"""One label an image: accuracy over all, and by how many training images a class has."""

import numpy as np

from cfmlc_jax.causal.views import Cell
from cfmlc_jax.classify.boxes import SplitBoxes
from cfmlc_jax.classify.multi_label import WEIGHTS_TEXT
from cfmlc_jax.metrics.rule_of_thumb import rule_of_thumb
from cfmlc_jax.results import single_label, tables
from cfmlc_jax.results.scores import Scores


class OneLabel:
    """The task of classification by a softmax, as in `tasks.Task`.

    class_counts: training images [k] of each class; NaN where they are not known.
    """

    selection = "top1"

    def __init__(self, class_counts: np.ndarray):
        self.class_counts = class_counts

    def validation(self, logits, labels) -> dict[str, float]:
        """Accuracies of the factual prediction (`single_label.METRICS`)."""
        return single_label.accuracies(logits, np.asarray(labels).argmax(axis=1), self.class_counts)

    def probabilities(self, logits) -> np.ndarray:
        """The softmax over the classes."""
        return single_label.probabilities(logits)

    def image_losses(self, logits, labels) -> np.ndarray:
        """Cross-entropy of the image's class."""
        logits = np.asarray(logits, np.float64)
        largest = logits.max(axis=1)
        normaliser = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
        return normaliser - (logits * (np.asarray(labels) > 0)).sum(axis=1)

    def blame(self, logits, labels) -> np.ndarray:
        """The logits: what an image was taken for."""
        return np.asarray(logits)

    def measure(self, scores: Scores, alphas) -> dict:
        """Accuracies as "metrics"."""
        return {"metrics": single_label.summarise(scores, alphas, self.class_counts)}

    def findings(
        self, config, scores: Scores, boxes: SplitBoxes | None, patch_cells: list[Cell] | None, class_names
    ) -> dict:
        """Intervals, and the rule of thumb for alpha where there is a mean feature."""
        generator = np.random.default_rng(config.seed)
        found = {
            "intervals": single_label.intervals(scores, config.effect.alphas, self.class_counts, generator)
        }
        if scores.cosine is not None:
            found["rule_of_thumb"] = rule_of_thumb(scores.cosine)
        return found

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """Accuracy of every class."""
        return single_label.per_class_csv(scores, alphas, self.class_counts, class_names)

    def summary(self, results: dict) -> str:
        """Accuracies of every split, and the rule of thumb."""
        parts = [self._table(results, split, "average") for split in results]
        return "\n\n".join([*parts, *_rules(results)])

    def details(self, results: dict) -> str:
        """Accuracies of both sets of weights."""
        return "\n\n".join(
            f"## {split}, {words}\n\n{self._table(results, split, weights)}"
            for split in results
            for weights, words in WEIGHTS_TEXT.items()
        )

    def _table(self, results, split, weights):
        rows = [
            [prediction, *(found[metric] for metric in single_label.METRICS)]
            for prediction, found in results[split][weights]["metrics"].items()
        ]
        header = [f"accuracy %, {split}", *single_label.METRICS]
        return tables.markdown(header, rows)


def _rules(results):
    found = {split: of["average"].get("rule_of_thumb") for split, of in results.items()}
    return [
        f"{split}: cos of features with the mean feature {of['mean_cosine']:.3f}, so alpha·cos is 1 at alpha "
        f"{of['alpha']:.2f} (rule of thumb)"
        for split, of in found.items()
        if of
    ]
