"""Any number of labels an image: mAP, decisions by a threshold, company, localisation."""

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.causal.views import Cell
from cfmlc_jax.classify.boxes import SplitBoxes
from cfmlc_jax.metrics import cooccurrence, localization
from cfmlc_jax.metrics.rule_of_thumb import rule_of_thumb
from cfmlc_jax.results import multi_label, tables
from cfmlc_jax.results import scores as metric_scores
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.scores import Scores

WEIGHTS_TEXT = {"weights": "weights of the last step", "average": "averaged weights"}


class ManyLabels:
    """The task of multi-label classification, as in `tasks.Task`.

    training: the training labels in brief; None where there are none.

    Args:
        training_labels: [n, k], or None.
    """

    # As in the reference's training.
    selection = "mAP_voc"

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
        return self.blame(logits, labels).mean(axis=1)

    def blame(self, logits, labels) -> np.ndarray:
        """Cross-entropy of every cell, nats."""
        logits = np.asarray(logits, np.float64)
        return np.logaddexp(0, np.where(np.asarray(labels) > 0, -logits, logits))

    def measure(self, scores: Scores, alphas) -> dict:
        """ "metrics" at threshold 0.5, and those of several "thresholds"; how many "classes" have a positive."""
        present = int(np.asarray(scores.labels).any(axis=0).sum())
        return {
            "metrics": metric_scores.summarise(scores, alphas),
            "thresholds": metric_scores.sweep(scores, alphas),
            "classes": {"with_positives": present, "all": scores.labels.shape[1]},
        }

    def findings(
        self, config, scores: Scores, boxes: SplitBoxes | None, patch_cells: list[Cell] | None, class_names
    ) -> dict:
        """Intervals, and company and localisation, None where there is nothing to measure them by."""
        alphas, generator = config.effect.alphas, np.random.default_rng(config.seed)
        found: dict[str, dict | None] = {
            "intervals": multi_label.intervals(scores, alphas, generator),
            "company": None,
            "localization": None,
        }
        if self.training is not None and self.training.pairs:
            found["company"] = multi_label.company(scores, alphas, self.training.pairs, generator)
        if patch_cells is not None and scores.attention is not None and boxes is not None:
            pairs = localization.localize(
                scores.attention.argmax(axis=1),
                boxes.corners,
                boxes.classes,
                boxes.sizes,
                size=config.views.image_size,
                cells=patch_cells,
            )
            # COCO's pixels say nothing of pictures of other sizes.
            relative = config.data.source != "coco"
            found["localization"] = multi_label.localized(pairs, class_names, relative=relative)
        if scores.cosine is not None:
            found["rule_of_thumb"] = rule_of_thumb(scores.cosine)
        return found

    def per_class_csv(self, scores: Scores, alphas, class_names) -> str:
        """Average precision of every class."""
        return metric_scores.per_class_csv(scores, alphas, class_names)

    def summary(self, results: dict) -> str:
        """mAP, company and localisation."""
        parts = [_map_text(results), _company_text(results), _localization_text(results)]
        return "\n\n".join(part for part in parts if part)

    def details(self, results: dict) -> str:
        """All metrics at threshold 0.5."""
        parts = []
        for split, of_split in results.items():
            names = list(next(iter(of_split["average"]["metrics"].values())))
            for weights, words in WEIGHTS_TEXT.items():
                rows = [
                    [prediction, *(found[name] for name in names)]
                    for prediction, found in of_split[weights]["metrics"].items()
                ]
                parts.append(f"## {split}, {words}\n\n{tables.markdown(['percent', *names], rows)}")
        return "\n\n".join(parts)


def _training(labels) -> Training:
    pairs = cooccurrence.strongest_pairs(labels, multi_label.PAIRS)
    return Training(len(labels), cooccurrence.counts(labels).tolist(), pairs.tolist())


def _map_text(results):
    columns = [
        (f"{split} ({definition})", split, f"mAP_{definition}", 1.0)
        for split in results
        for definition in metrics.AP_DEFINITIONS
    ]
    notes = []
    for split, of_split in results.items():
        counted = of_split["average"]["classes"]
        present, classes = counted["with_positives"], counted["all"]
        if present < classes:
            title = f"{split} (sklearn, {present} classes)"
            columns.append((title, split, "mAP_sklearn", classes / present))
            notes.append(
                f"{split}: classes without a positive image: {classes - present} of {classes}. Each counts as 0 in mAP "
                f"(sklearn), which lowers it; the column of {present} classes leaves them out, as voc does."
            )
    first = next(iter(results.values()))["average"]["metrics"]
    rows = [
        [name, *(results[split]["average"]["metrics"][name][key] * scale for _, split, key, scale in columns)]
        for name in first
    ]
    header = ["mAP %, averaged weights", *(title for title, *_ in columns)]
    return "\n\n".join([tables.markdown(header, rows), *notes])


def _company_text(results):
    """Of every prediction the mean excess of false positives, percentage points, and the context AUC."""
    found = {split: of["average"]["company"] for split, of in results.items() if of["average"]["company"]}
    if not found:
        return ""
    first = next(iter(found.values()))
    rows = [
        [name]
        + [
            cell
            for of in found.values()
            for cell in (
                _with_interval(of["predictions"][name]["excess_fpr"]),
                _with_interval(of["predictions"][name]["context_auc"]),
            )
        ]
        for name in first["predictions"]
    ]
    header = [f"beside the {first['pairs']} strongest pairs' context"]
    header += [f"{split} ({what})" for split in found for what in ("excess FPR", "AUC")]
    return tables.markdown(header, rows)


def _with_interval(values):
    value, low, high = values
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _localization_text(results):
    """How often the pivot holds its class, against a patch drawn at random and the best one."""
    rows = []
    for split, of_split in results.items():
        found = of_split["average"]["localization"]
        if found:
            rates = found["all"]
            rows.append([split, rates["pairs"], rates["hit"], rates["chance_hit"], rates["best_hit"]])
    if not rows:
        return ""
    return tables.markdown(["pivot hits %", "objects", "pivot", "chance", "best"], rows)
