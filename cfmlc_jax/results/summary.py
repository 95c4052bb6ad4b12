"""The tables of an evaluation's results, as Markdown."""

from collections.abc import Mapping

from cfmlc_jax import metrics
from cfmlc_jax.results import single_label
from cfmlc_jax.results.multi_label import MultiLabelResults
from cfmlc_jax.results.single_label import SingleLabelResults
from cfmlc_jax.results.split import WEIGHTS, Estimate
from cfmlc_jax.results.tables import markdown


def multi_label_summary(results: Mapping[str, MultiLabelResults]) -> str:
    """Tables of mAP, context and localisation of the averaged weights, by split."""
    parts = [_map_table(results), _context_table(results), _localization_table(results)]
    return "\n\n".join(part for part in parts if part)


def multi_label_details(results: Mapping[str, MultiLabelResults]) -> str:
    """A table of all metrics at threshold 0.5 for every split and set of weights."""
    parts = []
    for split, of_split in results.items():
        for weights, words in WEIGHTS.items():
            by_prediction = of_split.measures[weights].metrics
            names = list(next(iter(by_prediction.values())))
            rows = [[p.name, *(values[name] for name in names)] for p, values in by_prediction.items()]
            parts.append(f"## {split}, {words}\n\n{markdown(['percent', *names], rows)}")
    return "\n\n".join(parts)


def single_label_summary(results: Mapping[str, SingleLabelResults]) -> str:
    """Tables of the averaged weights' accuracies by split, and the strengths by the rule of thumb."""
    parts = [_accuracy_table(split, of_split, "average") for split, of_split in results.items()]
    return "\n\n".join([*parts, *_rules_of_thumb(results)])


def single_label_details(results: Mapping[str, SingleLabelResults]) -> str:
    """A table of accuracies for every split and set of weights."""
    return "\n\n".join(
        f"## {split}, {words}\n\n{_accuracy_table(split, of_split, weights)}"
        for split, of_split in results.items()
        for weights, words in WEIGHTS.items()
    )


def _map_table(results):
    columns = [
        (f"{split} ({definition})", split, f"mAP_{definition}", 1.0)
        for split in results
        for definition in metrics.AP_DEFINITIONS
    ]
    notes = []
    for split, of_split in results.items():
        classes = of_split.measures["average"].classes
        absent = classes.all - classes.with_positives
        if absent:
            title = f"{split} (sklearn, {classes.with_positives} classes)"
            columns.append((title, split, "mAP_sklearn", classes.all / classes.with_positives))
            notes.append(
                f"{split}: classes without a positive image: {absent} of {classes.all}. Each counts as 0 in mAP "
                f"(sklearn), which lowers it; the column of {classes.with_positives} classes leaves them out, as voc does."
            )
    by_split = {split: of_split.measures["average"].metrics for split, of_split in results.items()}
    rows = [
        [
            prediction.name,
            *(by_split[split][prediction][metric] * scale for _, split, metric, scale in columns),
        ]
        for prediction in next(iter(by_split.values()))
    ]
    header = ["mAP %, averaged weights", *(title for title, *_ in columns)]
    return "\n\n".join([markdown(header, rows), *notes])


def _context_table(results):
    """Of every prediction the mean excess of false positives, percentage points, and the context AUC."""
    contexts = {
        split: of_split.findings.context for split, of_split in results.items() if of_split.findings.context
    }
    if not contexts:
        return ""
    first = next(iter(contexts.values()))
    rows = []
    for prediction in first.predictions:
        uses = [context.predictions[prediction] for context in contexts.values()]
        cells = [_with_interval(value) for use in uses for value in (use.excess_fpr, use.context_auc)]
        rows.append([prediction.name, *cells])
    header = [f"beside the {first.pairs} strongest pairs' context"]
    header += [f"{split} ({what})" for split in contexts for what in ("excess FPR", "AUC")]
    return markdown(header, rows)


def _with_interval(estimate: Estimate):
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _localization_table(results):
    """How often the pivot holds its class, against a random patch and the best one."""
    localizations = {split: of_split.findings.localization for split, of_split in results.items()}
    rows = [
        [split, own.all.pairs, own.all.hit, own.all.chance_hit, own.all.best_hit]
        for split, own in localizations.items()
        if own
    ]
    return markdown(["pivot hits %", "objects", "pivot", "chance", "best"], rows) if rows else ""


def _accuracy_table(split, results, weights):
    rows = [
        [prediction.name, *(values[metric] for metric in single_label.METRICS)]
        for prediction, values in results.measures[weights].metrics.items()
    ]
    return markdown([f"accuracy %, {split}", *single_label.METRICS], rows)


def _rules_of_thumb(results):
    rules = {split: of_split.findings.rule_of_thumb for split, of_split in results.items()}
    return [
        f"{split}: cos of features with the mean feature {rule.mean_cosine:.3f}, so alpha·cos is 1 at alpha "
        f"{rule.alpha:.2f} (rule of thumb)"
        for split, rule in rules.items()
        if rule
    ]
