"""The report of a classifier of regions: average precision of boxes, by frequency and by class."""

import math

from cfmlc_jax.metrics.detection import METRICS
from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.sections.configuration import configuration
from cfmlc_jax.report.sections.layout import absent, fold, panels, section
from cfmlc_jax.report.sections.training import Chart, TrainingView, training
from cfmlc_jax.report.series import Series
from cfmlc_jax.report.task import Section, Task
from cfmlc_jax.results.detection import DetectionResults
from cfmlc_jax.results.read import Run

_TITLES = {"AP": "AP", "APr": "rare", "APc": "common", "APf": "frequent"}
_COLOURS = dict(zip(_TITLES, ("combined", "tde-feature", "texture", "whole"), strict=True))
_FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


def _trained_as(config) -> str:
    model = config["model"]
    return f"classifier {model['classifier']} of {model['stages']} stage{'s' * (model['stages'] > 1)}"


TRAINING = TrainingView(
    charts=(
        Chart("Loss", "loss", {"train/loss": ("loss", "combined")}),
        Chart(
            "AP of the chosen prediction",
            "%",
            {f"val/weights/{name}": (title, _COLOURS[name]) for name, title in _TITLES.items()},
        ),
        Chart(
            "AP of the factual prediction beside an effect",
            "%",
            {f"val/weights/whole_{name}": (title, _COLOURS[name]) for name, title in _TITLES.items()},
        ),
    ),
    columns={f"val/weights/{name}": name for name in METRICS},
    caption="Validation by epoch",
)


def _results(run: Run) -> Markup:
    results = run.detection
    if results is None:
        return section("results", "Results", absent("The full evaluation has not been written yet."))
    rows: list[list[tables.Cell]] = [
        [each.title, *(values.get(name, math.nan) for name in METRICS), results.detections[each]]
        for each, values in results.metrics.items()
    ]
    lede = (
        f"Average precision of boxes on {results.images:,} images by the rules of LVIS, in percent: of all classes, at "
        "overlaps .5 and .75, and of rare, common and frequent classes."
    )
    return section(
        "results",
        "Results",
        tables.table(["prediction", *METRICS, "detections"], rows, caption="Average precision by prediction"),
        _strengths(results),
        lede=lede,
    )


def _strengths(results: DetectionResults) -> Markup | None:
    """A chart of AP over the strength of the effect; None without effects. Strength 0 is the factual prediction."""
    by_alpha = {each.alpha or 0.0: values for each, values in results.metrics.items()}
    if len(by_alpha) < 2:
        return None
    lines = [
        Series(
            title, _COLOURS[name], [(alpha, values.get(name, math.nan)) for alpha, values in by_alpha.items()]
        )
        for name, title in _TITLES.items()
        if any(name in values for values in by_alpha.values())
    ]
    every = [value for line in lines for _, value in line.points if not math.isnan(value)]
    x = scales.spanning("strength α", by_alpha)
    return panels(
        line_chart("AP over the strength of the effect", lines, x, scales.fitted("%", every)), wide=True
    )


def _classes(run: Run) -> Markup | None:
    results = run.detection
    if results is None:
        return None
    predictions = list(results.metrics)
    rows: list[list[tables.Cell]] = [
        [each.name, _FREQUENCIES[each.frequency], each.boxes, *(each.precision[p] for p in predictions)]
        for each in sorted(results.classes, key=lambda each: "rcf".index(each.frequency))
        if each.boxes
    ]
    table = tables.table(
        ["class", "frequency", "boxes", *(p.title for p in predictions)],
        rows,
        caption="Average precision by class",
        tall=True,
    )
    return section(
        "classes", "Classes", fold(f"{len(rows):,} classes with boxes, the rare ones first", table)
    )


TASK = Task(
    kicker=lambda run: "Regions of a detector",
    trained_as=_trained_as,
    evaluated=None,
    sections=(
        Section("results", "Results", lambda run, alphas: _results(run)),
        Section("classes", "Classes", lambda run, alphas: _classes(run)),
        Section("training", "Training", lambda run, alphas: training(run, TRAINING)),
        Section("configuration", "Configuration", lambda run, alphas: configuration(run)),
    ),
)
