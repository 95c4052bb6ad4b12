"""Markdown tables of the results of an evaluation."""

from collections.abc import Mapping

from cfmlc_jax import metrics
from cfmlc_jax.results import single_label
from cfmlc_jax.results.multi_label import MultiLabelResults
from cfmlc_jax.results.single_label import SingleLabelResults
from cfmlc_jax.results.split import WEIGHTS
from cfmlc_jax.results.tables import markdown, with_interval


def multi_label_summary(results: Mapping[str, MultiLabelResults]) -> str:
    """Tables of mAP, decisions, context and localisation by split, for the averaged weights."""
    parts = [_map_table(results), _decisions_table(results)]
    parts += [_context_table(results), _localization_table(results)]
    return "\n\n".join(part for part in parts if part)


def multi_label_details(results: Mapping[str, MultiLabelResults]) -> str:
    """A table of all metrics at threshold 0.5, for every split and both sets of weights."""
    parts = []
    for split, split_results in results.items():
        for weights, words in WEIGHTS.items():
            by_prediction = split_results.measures[weights].metrics
            names = list(next(iter(by_prediction.values())))
            rows = [[p.name, *(values[name] for name in names)] for p, values in by_prediction.items()]
            parts.append(f"## {split}, {words}\n\n{markdown(['percent', *names], rows)}")
    return "\n\n".join(parts)


def single_label_summary(results: Mapping[str, SingleLabelResults]) -> str:
    """Tables of accuracies by split, for the averaged weights; and alpha by the rule of thumb."""
    parts = [_accuracy_table(split, split_results, "average") for split, split_results in results.items()]
    return "\n\n".join([*parts, *_rules_of_thumb(results)])


def single_label_details(results: Mapping[str, SingleLabelResults]) -> str:
    """A table of accuracies, for every split and both sets of weights."""
    return "\n\n".join(
        f"## {split}, {words}\n\n{_accuracy_table(split, split_results, weights)}"
        for split, split_results in results.items()
        for weights, words in WEIGHTS.items()
    )


def _map_table(results):
    columns = [
        (f"{split} ({definition})", split, f"mAP_{definition}", 1.0)
        for split in results
        for definition in metrics.AP_DEFINITIONS
    ]
    notes = []
    for split, split_results in results.items():
        classes = split_results.measures["average"].classes
        absent = classes.all - classes.with_positives
        if classes.unknown:
            notes.append(
                f"{split}: {classes.unknown:,} labels are unknown; every metric leaves them out, class by class."
            )
        if absent:
            title = f"{split} (sklearn, {classes.with_positives} classes)"
            columns.append((title, split, "mAP_sklearn", classes.all / classes.with_positives))
            notes.append(
                f"{split}: {absent} of {classes.all} classes have no positive image. Each counts as 0 in mAP "
                f"(sklearn), which lowers it; the column of {classes.with_positives} classes leaves them out, as mAP (voc) does."
            )
    by_split = {split: split_results.measures["average"].metrics for split, split_results in results.items()}
    rows = [
        [
            prediction.name,
            *(by_split[split][prediction][metric] * scale for _, split, metric, scale in columns),
        ]
        for prediction in next(iter(by_split.values()))
    ]
    header = ["mAP %, averaged weights", *(title for title, *_ in columns)]
    return "\n\n".join([markdown(header, rows), *notes])


def _decisions_table(results):
    """A table of CF1 and OF1 at fitted thresholds and at 0.5, by prediction; "" without fitted thresholds."""
    decided = {
        split: split_results.findings.decisions
        for split, split_results in results.items()
        if split_results.findings.decisions
    }
    if not decided:
        return ""
    first = next(iter(decided.values()))
    rows = []
    for prediction in first.predictions:
        cells: list[float] = []
        for split, decisions in decided.items():
            fixed = results[split].measures["average"].metrics[prediction]
            cells += [
                values[f1] for f1 in ("CF1", "OF1") for values in (decisions.predictions[prediction], fixed)
            ]
        rows.append([prediction.name, *cells])
    header = [f"thresholds: {first.title}"]
    header += [f"{split} {f1}{at}" for split in decided for f1 in ("CF1", "OF1") for at in ("", " at 0.5")]
    notes = [
        f"{split} is the split that the thresholds were fitted on: its CF1 and OF1 with them are too high."
        for split, decisions in decided.items()
        if decisions.split == split
    ]
    return "\n\n".join([markdown(header, rows), *notes])


def _context_table(results):
    """A table of the mean excess of false positives, percentage points, and the context AUC, by prediction."""
    contexts = {
        split: split_results.findings.context
        for split, split_results in results.items()
        if split_results.findings.context
    }
    if not contexts:
        return ""
    first = next(iter(contexts.values()))
    rows = []
    for prediction in first.predictions:
        uses = [context.predictions[prediction] for context in contexts.values()]
        cells = [with_interval(value) for use in uses for value in (use.excess_fpr, use.context_auc)]
        rows.append([prediction.name, *cells])
    header = [f"context of the {first.pairs} strongest pairs"]
    header += [f"{split} ({metric})" for split in contexts for metric in ("excess FPR", "AUC")]
    return markdown(header, rows)


def _localization_table(results):
    """A table of how often the pivot patch hits a box of its class; also for a random patch and the best patch."""
    localizations = {split: split_results.findings.localization for split, split_results in results.items()}
    rows = [
        [split, result.all.pairs, result.all.hit, result.all.chance_hit, result.all.best_hit]
        for split, result in localizations.items()
        if result
    ]
    return markdown(["pivot hits %", "objects", "pivot", "chance", "best"], rows) if rows else ""


def _accuracy_table(split, results, weights):
    rows = [
        [prediction.name, *(values[metric] for metric in single_label.METRICS)]
        for prediction, values in results.measures[weights].metrics.items()
    ]
    return markdown([f"accuracy %, {split}", *single_label.METRICS], rows)


def _rules_of_thumb(results):
    rules = {split: split_results.findings.rule_of_thumb for split, split_results in results.items()}
    return [
        f"{split}: cos of features with the mean feature {rule.mean_cosine:.3f}, so alpha·cos is 1 at alpha "
        f"{rule.alpha:.2f} (rule of thumb)"
        for split, rule in rules.items()
        if rule
    ]
