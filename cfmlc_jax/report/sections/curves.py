"""The section of curves: precision against recall, and metrics against the threshold."""

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.line_chart import line_chart, small_chart
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import fold, panels, section, split_block
from cfmlc_jax.report.series import Series
from cfmlc_jax.results.predictions import COMBINED, WHOLE, one_of_each_kind
from cfmlc_jax.results.read import Run, Split
from cfmlc_jax.results.scores import probabilities

# The recalls at which curves are drawn.
RECALLS = np.linspace(0.0, 1.0, 101)
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
WEAKEST = 12


def curves(run: Run) -> Markup | None:
    """The section with precision-recall curves of all entries and of the weakest classes, and metrics by threshold."""
    if not run.splits or run.evidence is None:
        return None
    lede = (
        "Precision against recall over all pairs of an image and a class, and overall F1 (OF1) against the "
        "threshold on probabilities."
    )
    blocks = [_split(run, split, run.evidence.class_names) for split in run.splits]
    return section("curves", "Precision, recall, thresholds", *blocks, lede=lede)


def _split(run: Run, split: Split, names):
    logits = split.logits
    shown = one_of_each_kind(split.predictions)
    unit = scales.fixed("recall, %", 0, 100, 20)
    recall = [
        _line(
            prediction,
            zip((100 * RECALLS).tolist(), pooled_precision(logits[prediction], split.scores.labels).tolist()),
        )
        for prediction in shown
    ]
    over = [_line(prediction, _f1(logits[prediction], split.scores.labels)) for prediction in shown]
    return split_block(
        run,
        split.name,
        panels(
            line_chart("Precision and recall", recall, unit, scales.fixed("precision, %", 0, 100, 20)),
            line_chart(
                "Overall F1 by threshold",
                over,
                scales.fixed("threshold", 0, 1, 0.2),
                scales.fixed("OF1, %", 0, 100, 20),
            ),
            wide=True,
        ),
        fold("Thresholds in numbers", _numbers(split)),
        _weakest(split, logits[COMBINED], logits[WHOLE], names),
    )


def _line(prediction, points):
    return Series(prediction.title, series.colour(prediction), list(points))


def precision_at(scores, positive, recalls) -> np.ndarray:
    """The highest precision at each recall or above: [n], bool [n], [r] -> [r] in [0, 1]; NaN without positives."""
    if not positive.any():
        return np.full(len(recalls), np.nan)
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_tie]
    precision = hits / (np.flatnonzero(last_of_tie) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return envelope[np.searchsorted(hits / hits[-1], np.minimum(recalls, 1.0) - 1e-12)]


def pooled_precision(logits, labels) -> np.ndarray:
    """`precision_at` for `RECALLS` over all entries, percent: two [n, k] -> [r]."""
    known = labels >= 0
    return 100 * precision_at(probabilities(logits)[known], labels[known] > 0, RECALLS)


def _recall_curve(scores, positive):
    return list(zip(RECALLS.tolist(), precision_at(scores, positive, RECALLS).tolist()))


def _f1(logits, labels):
    predicted = probabilities(logits)
    return [(t, metrics.thresholded(predicted, labels, t)["OF1"]) for t in THRESHOLDS]


def _numbers(split: Split):
    thresholds = split.multi_label.measures["average"].thresholds
    decisions = split.multi_label.findings.decisions
    rows: list[list[tables.Cell]] = []
    for prediction in split.predictions:
        by_threshold = dict(thresholds[prediction])
        if decisions is not None and prediction in decisions.predictions:
            by_threshold = {decisions.title: decisions.predictions[prediction]} | by_threshold
        rows += [
            [f"{prediction.title}, {threshold.replace('top3', 'top 3')}", *map(float, values.values())]
            for threshold, values in by_threshold.items()
        ]
    header = ["prediction, threshold", *next(iter(thresholds[COMBINED].values()))]
    return tables.table(header, rows, caption=f"Metrics by threshold on {split.name}, percent", tall=True)


def _weakest(split: Split, combined, whole, names):
    labels, known = split.scores.labels > 0, split.scores.labels >= 0
    ap = np.where(
        labels.any(axis=0), metrics.average_precision(combined, split.scores.labels, "sklearn"), np.nan
    )
    order = [k for k in np.argsort(ap, kind="stable").tolist() if not np.isnan(ap[k])][:WEAKEST]
    charts = [
        small_chart(
            names[k],
            f"AP {100 * ap[k]:.1f} %",
            [
                Series(
                    name,
                    colour,
                    _recall_curve(x[known[:, k], k], labels[known[:, k], k]),
                )
                for name, colour, x in (("whole image", "whole", whole), ("combined", "combined", combined))
            ],
        )
        for k in order
    ]
    note = element(
        "p",
        "Vertical: precision; horizontal: recall; both from 0 to 1. Coloured: combined; grey: whole image.",
    )
    return fold(
        f"Precision and recall of the {len(order)} weakest classes",
        note,
        element("div", *charts, class_="smalls"),
    )
