"""The report of the multi-label task: its metrics and sections."""

from collections.abc import Sequence

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.metrics.bootstrap import mean_of_defined, ratio
from cfmlc_jax.metrics.context_auc import weighted_context_auc
from cfmlc_jax.report import classifier_training, tables
from cfmlc_jax.report.markup import element
from cfmlc_jax.report.sections.classes import ClassesView, ClassTable, classes
from cfmlc_jax.report.sections.configuration import configuration
from cfmlc_jax.report.sections.context import context
from cfmlc_jax.report.sections.curves import curves
from cfmlc_jax.report.sections.examples import ExamplesView, examples
from cfmlc_jax.report.sections.gallery import gallery
from cfmlc_jax.report.sections.pivots import pivots
from cfmlc_jax.report.sections.results import Metric, ResultsView, results
from cfmlc_jax.report.sections.strength import Chart, Line, StrengthView, Sweep, strength
from cfmlc_jax.report.sections.training import training
from cfmlc_jax.report.series import kind_colour
from cfmlc_jax.report.task import Section, Task
from cfmlc_jax.results import multi_label
from cfmlc_jax.results.predictions import COMBINED, WHOLE, Prediction, chief_effect, effect_of, kind_title
from cfmlc_jax.results.read import Run, Split
from cfmlc_jax.results.scores import mean_average_precisions, probabilities
from cfmlc_jax.results.thresholds import of_class

METHODS = {
    "pat_t": "PAT-T, trained with patches",
    "pat_i": "PAT-I, predicts with patches",
    "whole": "whole images only, the baseline",
}


def _trained_as(config) -> str:
    return METHODS.get(config["method"], str(config["method"])) if "method" in config else ""


def _title(prediction: Prediction) -> str:
    return prediction.title


def _results_lede(intervals):
    return (
        f"Mean average precision (mAP) in percent of the averaged weights. Brackets are {intervals.level:.0%} bootstrap "
        f"intervals over images ({intervals.resamples} resamples). They are corrected for the bias of classes with few positives, so the value of a "
        "weak classifier lies in the upper part of its interval. Intervals of gains are of the difference on the same images."
    )


def _facts(split: Split, chief: Prediction):
    measures, findings = split.multi_label.measures["average"], split.multi_label.findings
    facts = _absent_classes(measures.classes, measures.metrics[chief]["mAP_sklearn"])
    if measures.classes is not None and measures.classes.unknown:
        facts.append(("unknown labels, in no metric", f"{measures.classes.unknown:,}"))
    if findings.decisions is not None and chief in findings.decisions.predictions:
        at_fitted = findings.decisions.predictions[chief]
        fixed = measures.metrics[chief]
        words = f"CF1, OF1 at thresholds ({findings.decisions.title})"
        if findings.decisions.split == split.name:
            words += ", fitted on these images"
        numbers = " and ".join(f"{tables.decimal(at_fitted[name], 1)}" for name in ("CF1", "OF1"))
        before = " and ".join(f"{tables.decimal(fixed[name], 1)}" for name in ("CF1", "OF1"))
        facts.append((words, element("span", numbers, " % ", element("small", f"at 0.5: {before}"))))
    if findings.context is not None:
        use = findings.context.predictions[chief]
        facts.append(("context AUC (50: ignores context)", tables.with_interval(*use.context_auc, digits=1)))
    if findings.localization is not None:
        rates = findings.localization.all
        chance = element("small", f"chance {tables.decimal(rates.chance_hit, 1)}")
        facts.append(("pivot hits", element("span", tables.decimal(rates.hit, 1), " % ", chance)))
    return facts


def _absent_classes(counted: multi_label.Classes | None, value):
    """The mAP (sklearn) without the classes that have no positive image and count as 0 in it; [] if there are none."""
    if counted is None or counted.all == counted.with_positives:
        return []
    absent = counted.all - counted.with_positives
    words = f"without the {absent} of {counted.all} classes that have no positive image, each 0 in it"
    return [(words, f"{tables.decimal(value * counted.all / counted.with_positives)} %")]


RESULTS = ResultsView(
    lede=_results_lede,
    metric=Metric("mAP_sklearn", "mAP (sklearn)"),
    unit="% mAP",
    others=(Metric("mAP_voc", "mAP (voc)"),),
    gains=(("sklearn", "gain (sklearn)"), ("voc", "gain (voc)")),
    baseline=multi_label.BASELINE,
    gain_title="over whole image",
    title=_title,
    chief=lambda split: COMBINED,
    facts=_facts,
    caption="Mean average precision",
    every=tuple(Metric(name, name.replace("_", " ")) for name in multi_label.METRICS),
    every_summary="All metrics at threshold 0.5, raw and averaged weights",
    every_caption="Metrics",
)


def _classes_of(run: Run, split: Split) -> ClassTable:
    """The classes by average precision of the combined prediction, highest first; last those without positives."""
    effect = chief_effect(split.predictions)
    marks = {COMBINED: "bar", WHOLE: "tick"} | ({effect: "dot"} if effect else {})
    positives = (split.scores.labels > 0).sum(axis=0, dtype=int)
    unknown = (split.scores.labels < 0).sum(axis=0, dtype=int)
    precisions = {
        prediction: np.where(
            positives > 0,
            100 * metrics.average_precision(split.logits[prediction], split.scores.labels, "sklearn"),
            np.nan,
        )
        for prediction in marks
    }
    return ClassTable(
        order=np.argsort(np.where(positives > 0, -precisions[COMBINED], np.inf), kind="stable").tolist(),
        facts=[
            ("images", positives.tolist()),
            *([("unknown", unknown.tolist())] if unknown.any() else []),
            *_decided(run, split),
        ],
        values=precisions,
        marks=marks,
        changes=[("combined − whole", precisions[COMBINED] - precisions[WHOLE])],
    )


def _decided(run: Run, split: Split) -> list[tuple[str, list[float]]]:
    """Columns of the fitted thresholds, and of precision and recall at them; none without fitted thresholds."""
    thresholds = None if run.evidence is None else run.evidence.thresholds
    chosen = None if thresholds is None else thresholds.of("average", COMBINED)
    if chosen is None:
        return []
    present, known = split.scores.labels > 0, split.scores.labels >= 0
    predicted = known & (probabilities(split.logits[COMBINED]) > chosen)
    hits = (predicted & present).sum(axis=0)
    precision, recall = (100 * ratio(hits, count.sum(axis=0)) for count in (predicted, present))
    return [
        ("threshold", chosen.astype(float).tolist()),
        ("precision", precision.tolist()),
        ("recall", recall.tolist()),
    ]


def _classes_lede(run: Run) -> str:
    lede = "Average precision (sklearn) of each class in percent, highest first. Classes without a positive image come last."
    thresholds = None if run.evidence is None else run.evidence.thresholds
    if thresholds is None:
        return lede
    lede += f" Precision and recall are at the class’s threshold: {thresholds.title}, combined prediction."
    for reason, names in thresholds.fallbacks.items():
        lede += f" {reason[0].upper()}{reason[1:]}: {', '.join(names)}."
    return lede


CLASSES = ClassesView(
    lede=_classes_lede,
    metric="Average precision",
    title=_title,
    table=_classes_of,
)


def _strength_lede(run: Run):
    assert run.evidence is not None
    return (
        f"A total direct effect is combined − α · (combined of the counterfactual). Removed pixels show the null “{run.evidence.config['effect']['null']}”. "
        "At α = 0 it equals the combined prediction. If the null is the same for all images, TDE whole shifts a class’s logits by a constant, so its mAP is constant."
    )


def _sweep(run: Run, split: Split, counterfactual: str, alphas: Sequence[float]) -> Sweep:
    """Both mAPs, CF1, OF1 and, if there are pairs of classes, the context AUC at each strength."""
    labels, null = split.scores.labels, split.scores.counterfactuals[counterfactual]
    pairs = run.evidence.training.pairs if run.evidence and run.evidence.training else []
    constant = (null == null[:1]).all()
    # With one null for all images the ranking is that of the combined prediction, up to rounding.
    ranking_metrics = _ranking_metrics(split.scores.logits["combined"], labels, pairs) if constant else None
    sweep = []
    for alpha in alphas:
        logits = split.scores.effect(counterfactual, alpha)
        decided = metrics.thresholded(probabilities(logits), labels, multi_label.THRESHOLD)
        sweep.append(decided | (ranking_metrics or _ranking_metrics(logits, labels, pairs)))
    return sweep


def _ranking_metrics(logits, labels, pairs):
    values = mean_average_precisions(logits, labels)
    if pairs:
        auc = weighted_context_auc(logits, labels, pairs)(np.ones((1, len(labels))))
        values["context_auc"] = float(100 * mean_of_defined(auc)[0])
    return values


_STRENGTH_METRICS = {
    "mAP_sklearn": "mAP (sklearn)",
    "mAP_voc": "mAP (voc)",
    "CF1": "CF1",
    "OF1": "OF1",
    "context_auc": "context AUC",
}


def _strength_charts(counterfactuals: Sequence[str]) -> list[Chart]:
    """One chart per metric, with one line per effect."""
    kinds = {each: effect_of(each, 0).kind for each in counterfactuals}
    return [
        Chart(
            f"{_STRENGTH_METRICS[metric]} by strength",
            f"{_STRENGTH_METRICS[metric]}, %",
            [Line(kind_title(kind), kind_colour(kind), each, metric) for each, kind in kinds.items()],
        )
        for metric in ("mAP_sklearn", "OF1", "context_auc")
    ]


STRENGTH = StrengthView(lede=_strength_lede, metrics=_STRENGTH_METRICS, sweep=_sweep, charts=_strength_charts)
EXAMPLES_LEDE = (
    "The images with the lowest and the highest mean cross-entropy of the combined prediction, each with three classes: the most "
    "probable ones, or those with the highest loss."
)


def _examples_view(run: Run) -> ExamplesView:
    thresholds = None if run.evidence is None else run.evidence.thresholds
    return ExamplesView(
        lede=EXAMPLES_LEDE,
        predicted=lambda shown, example: shown.probability > of_class(thresholds, shown.label),
    )


TRAINING = classifier_training.view(
    "Validation mAP",
    "mAP (voc), %",
    {"mAP_voc": "voc", "mAP_sklearn": "sklearn"},
    "Validation mAP by epoch, percent",
)
TASK = Task(
    kicker=lambda run: "Counterfactual multi-label classification",
    trained_as=_trained_as,
    evaluated="curves, context, pivots",
    sections=(
        Section("results", "Results", lambda run, alphas: results(run, RESULTS)),
        Section("classes", "Classes", lambda run, alphas: classes(run, CLASSES)),
        Section("class-images", "Class images", lambda run, alphas: gallery(run)),
        Section("curves", "Curves", lambda run, alphas: curves(run)),
        Section("context", "Context", lambda run, alphas: context(run)),
        Section("strength", "Effects", lambda run, alphas: strength(run, STRENGTH, alphas)),
        Section("pivots", "Pivots", lambda run, alphas: pivots(run)),
        Section("examples", "Images", lambda run, alphas: examples(run, _examples_view(run))),
        Section("training", "Training", lambda run, alphas: training(run, TRAINING)),
        Section("configuration", "Configuration", lambda run, alphas: configuration(run)),
    ),
)
