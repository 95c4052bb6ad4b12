"""The report of the single-label task: its metrics and sections, with those of long tails."""

import math
from collections.abc import Sequence

import numpy as np

from cfmlc_jax.metrics import shots
from cfmlc_jax.report import classifier_training, tables
from cfmlc_jax.report.sections.classes import ClassesView, ClassTable, classes
from cfmlc_jax.report.sections.configuration import configuration
from cfmlc_jax.report.sections.examples import ExamplesView, examples
from cfmlc_jax.report.sections.results import Metric, ResultsView, results
from cfmlc_jax.report.sections.strength import Chart, Line, StrengthView, Sweep, strength
from cfmlc_jax.report.sections.training import training
from cfmlc_jax.report.task import Section, Task
from cfmlc_jax.results import single_label
from cfmlc_jax.results.predictions import WHOLE, Prediction
from cfmlc_jax.results.read import Run, Split

TITLES = {
    "top1": "all",
    "many": "many shots",
    "medium": "medium",
    "few": "few shots",
    "macro_F1": "macro-F1",
}
# Colour and dash of the lines in the charts of strength.
_LINES = {
    "top1": ("combined", None),
    "many": ("whole", "5 3"),
    "medium": ("patch", "5 3"),
    "few": ("tde-pivot", "5 3"),
}
# The largest class of long-tailed data has at least so many times the images of the smallest.
_LONG_TAIL = 5
_COUNTERFACTUALS = {
    "feature": "the mean feature",
    "whole": "the null image",
    "pivot": "the image without the pivot patch",
    "owner": "the image without the pixels of the class",
}


def _trained_as(config) -> str:
    heads = ", a head for each mechanism" if config.get("method") == "invariant" else ""
    return f"single-label, loss {config['loss']['name']}{heads}"


def _kicker(run: Run) -> str:
    if _long_tailed(run):
        return "Counterfactual long-tailed classification"
    counterfactuals = (run.config or {}).get("data", {}).get("counterfactuals", {})
    if counterfactuals.get("path"):
        return "Classification with counterfactual images"
    return "Single-label classification"


def _long_tailed(run: Run) -> bool:
    """Whether classes have very different numbers of training images; by the data's name if these are unknown."""
    counts = None if run.evidence is None else run.evidence.class_counts
    if counts:
        return max(counts) >= _LONG_TAIL * max(1, min(counts))
    source = str((run.config or {}).get("data", {}).get("source", ""))
    return source.endswith("_lt") or source.startswith("long_tailed")


def _title(prediction: Prediction) -> str:
    """The name of a prediction; the factual one is that of whole images."""
    return "factual" if prediction == single_label.BASELINE else prediction.title


def _results_lede(intervals):
    return (
        f"Top-1 accuracy in percent of the averaged weights: over all images, and the mean over classes with many (more than {shots.MANY}), "
        f"medium and few (fewer than {shots.FEW}) training images. Brackets are {intervals.level:.0%} bootstrap intervals over "
        f"images ({intervals.resamples} resamples). Intervals of gains are of the difference on the same images."
    )


def chief(split: Split) -> Prediction:
    """The effect to show where there is room for one: its strength is nearest to the rule of thumb, else the first.

    Without effects it is the factual prediction.
    """
    strengths = {p: p.alpha for p in split.predictions if p.alpha is not None}
    if not strengths:
        return single_label.BASELINE
    rule = split.results.findings.rule_of_thumb
    if rule is None or math.isnan(rule.alpha):
        return next(iter(strengths))
    return min(strengths, key=lambda prediction: abs(strengths[prediction] - rule.alpha))


def _facts(split: Split, prediction: Prediction):
    values, rule = split.metrics[prediction], split.results.findings.rule_of_thumb
    facts = [(TITLES[group], tables.decimal(float(values[group]), 1)) for group in shots.GROUPS]
    if rule is not None:
        text = f"{tables.decimal(float(rule.alpha))} (cos {tables.decimal(float(rule.mean_cosine))})"
        facts.append(("α by the rule of thumb, α·cos ≈ 1", text))
    return facts


RESULTS = ResultsView(
    lede=_results_lede,
    metric=Metric("top1", TITLES["top1"]),
    unit="% correct",
    others=tuple(Metric(group, TITLES[group], digits=1) for group in shots.GROUPS),
    gains=(("top1", "gain"),),
    baseline=single_label.BASELINE,
    gain_title="over the factual prediction",
    title=_title,
    chief=chief,
    facts=_facts,
    caption="Accuracy",
    every=tuple(Metric(name, TITLES[name]) for name in single_label.METRICS),
    every_summary="All metrics, raw and averaged weights",
    every_caption="Accuracy",
)


def _classes_lede(run: Run):
    assert run.evidence is not None
    lede = "Accuracy on the images of each class, in percent"
    if run.evidence.class_counts:
        return f"{lede}. The most frequent class in training comes first."
    return f"{lede}. The numbers of training images are unknown."


def _classes_of(run: Run, split: Split) -> ClassTable:
    """The classes by number of training images, most frequent first."""
    assert run.evidence is not None
    num_classes, counts = len(run.evidence.class_names), run.evidence.class_counts
    labels = split.scores.labels.argmax(axis=1)
    marks = {WHOLE: "bar"}
    marks |= {prediction: "dot" for prediction in [chief(split)] if prediction != WHOLE}
    order = range(num_classes) if counts is None else np.argsort(-np.asarray(counts), kind="stable").tolist()
    unknown: list[tables.Cell] = ["–"] * num_classes
    return ClassTable(
        order=order,
        facts=[
            ("training images", unknown if counts is None else [int(count) for count in counts]),
            ("shots", unknown if counts is None else [_group(count) for count in counts]),
            ("images", np.bincount(labels, minlength=num_classes).tolist()),
        ],
        values={
            prediction: 100
            * shots.per_class_accuracy(split.logits[prediction].argmax(axis=1), labels, num_classes)
            for prediction in marks
        },
        marks=marks,
    )


def _group(count) -> str:
    return next(name for name in shots.GROUPS if shots.group([count], name)[0])


CLASSES = ClassesView(lede=_classes_lede, metric="Accuracy", title=_title, table=_classes_of)


def _strength_lede(run: Run):
    return (
        "A total direct effect is factual logits − α · counterfactual logits. The counterfactual logits are the part along the mean feature of "
        "training (or those of a null image). At α = 0 it equals the factual prediction. The strength needs no training; choose it on a "
        "validation split."
    )


def _sweep(run: Run, split: Split, counterfactual: str, alphas: Sequence[float]) -> Sweep:
    """`single_label.METRICS` in percent at each strength."""
    assert run.evidence is not None
    labels = split.scores.labels.argmax(axis=1)
    # NaN: a class whose count is unknown is in no shot group.
    counts = run.evidence.class_counts or np.full(len(run.evidence.class_names), np.nan)
    return [
        single_label.accuracies(split.scores.effect(counterfactual, alpha), labels, counts)
        for alpha in alphas
    ]


def _strength_charts(counterfactuals: Sequence[str]) -> list[Chart]:
    """One chart per effect, with a line for the accuracy over all images and one per shot group."""
    return [
        Chart(
            f"Accuracy by strength of the effect against {_COUNTERFACTUALS.get(each, each)}",
            "accuracy, %",
            [
                Line(TITLES[metric], colour, each, metric, dash)
                for metric, (colour, dash) in reversed(_LINES.items())
            ],
        )
        for each in counterfactuals
    ]


STRENGTH = StrengthView(lede=_strength_lede, metrics=TITLES, sweep=_sweep, charts=_strength_charts)
EXAMPLES = ExamplesView(
    lede=(
        "The images with the lowest and the highest cross-entropy of the factual prediction, each with its three most probable classes."
    ),
    # The predicted class is the most probable one.
    predicted=lambda shown, example: (
        shown.label == max(example.classes, key=lambda each: each.probability).label
    ),
)
TRAINING = classifier_training.view(
    "Validation accuracy",
    "top-1, %",
    {name: name for name in ("top1", "many", "medium", "few")},
    "Validation accuracy by epoch, percent",
)
TASK = Task(
    kicker=_kicker,
    trained_as=_trained_as,
    evaluated="effects",
    sections=(
        Section("results", "Results", lambda run, alphas: results(run, RESULTS)),
        Section("classes", "Classes", lambda run, alphas: classes(run, CLASSES)),
        Section("strength", "Effects", lambda run, alphas: strength(run, STRENGTH, alphas)),
        Section("examples", "Images", lambda run, alphas: examples(run, EXAMPLES)),
        Section("training", "Training", lambda run, alphas: training(run, TRAINING)),
        Section("configuration", "Configuration", lambda run, alphas: configuration(run)),
    ),
)
