"""The page that compares two runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import cfmlc_jax
from cfmlc_jax import files
from cfmlc_jax.errors import InputError, WriteError
from cfmlc_jax.report import page, scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.curves import RECALLS, pooled_precision
from cfmlc_jax.report.sections.layout import panels, section, split_block
from cfmlc_jax.report.series import Series
from cfmlc_jax.results import comparison, multi_label, read
from cfmlc_jax.results.comparison import Comparison
from cfmlc_jax.results.predictions import COMBINED, Prediction
from cfmlc_jax.results.read import Run
from cfmlc_jax.results.thresholds import FIXED

FILE = "comparison.html"
COLOURS = ("whole", "combined")


def write(
    first: Path,
    second: Path,
    out: Path | None = None,
    predictions: Sequence[Prediction] = (COMBINED, COMBINED),
) -> tuple[Path, list[str]]:
    """Write the page, and return its path and a line for each split.

    Args:
        first: workdir of an evaluated run.
        second: workdir of another, on the same classes and images.
        out: of the page; None: report/comparison.html of the second.
        predictions: of the first and of the second run.

    Raises:
        InputError: the runs cannot be compared (`results.comparison.compare`), or the page cannot be written.
    """
    runs = read.run(first), read.run(second)
    compared = comparison.compare(*runs, predictions)
    path = second / "report" / FILE if out is None else out
    try:
        files.write_text(path, text(runs, compared))
    except WriteError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another --out") from error
    return path, [_line(each) for each in compared]


def _line(each: Comparison) -> str:
    one, other, (value, low, high) = each.means["sklearn"]
    return f"{each.split}: mAP (sklearn) {one:.2f} and {other:.2f}, difference {value:+.2f} [{low:+.2f}, {high:+.2f}]"


def text(runs: tuple[Run, Run], compared: Sequence[Comparison]) -> str:
    """The page, a self-contained HTML document."""
    names = _names(runs)
    body = element(
        "body",
        element("a", "Skip to content", href="#content", class_="skip"),
        element(
            "header",
            element("p", "Two runs on the same images", class_="kicker"),
            element("h1", f"{names[1]} against {names[0]}"),
            element("p", " · ".join(_facts(runs, names, compared)), class_="facts"),
        ),
        element("main", _results(runs[0], compared, names), _classes(runs, compared, names), id="content"),
        element(
            "footer",
            f"Written by cfmlc_jax {cfmlc_jax.__version__} from the files of both runs. It needs no network; a script in it "
            "sorts tables.",
        ),
        page.sorting(),
    )
    head = page.head(f"{names[1]} against {names[0]}")
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _names(runs) -> tuple[str, str]:
    """The names of the runs, told apart."""
    first, second = (run.name for run in runs)
    return (first, second) if first != second else (f"{first} (first)", f"{second} (second)")


def _facts(runs, names, compared):
    facts = []
    for run, name, prediction in zip(runs, names, compared[0].predictions):
        thresholds = run.evidence.thresholds
        decided = f"{FIXED:g}" if thresholds is None else thresholds.title
        facts.append(
            f"{name}: checkpoint {run.evidence.checkpoint}, {prediction.title}, thresholds {decided}"
        )
    return facts


def _results(run: Run, compared: Sequence[Comparison], names) -> Markup:
    blocks = []
    for each in compared:
        rows: list[list[tables.Cell]] = [
            [
                f"mAP ({definition})",
                float(one),
                float(other),
                tables.with_interval(*map(float, difference), sign=True),
            ]
            for definition, (one, other, difference) in each.means.items()
        ]
        header = ["percent", *names, "difference"]
        table = tables.table(header, rows, caption=f"Mean average precision on {each.split}")
        lines = [
            Series(
                name,
                colour,
                list(
                    zip(
                        (100 * RECALLS).tolist(),
                        pooled_precision(_logits(each, i), each.scores[i].labels).tolist(),
                    )
                ),
            )
            for i, (name, colour) in enumerate(zip(names, COLOURS))
        ]
        chart = line_chart(
            f"Precision and recall on {each.split}",
            lines,
            scales.fixed("recall, %", 0, 100, 20),
            scales.fixed("precision, %", 0, 100, 20),
        )
        blocks.append(split_block(run, each.split, table, panels(chart, wide=True)))
    lede = (
        f"Brackets are {multi_label.LEVEL:.0%} intervals of the difference ({compared[0].resamples} bootstrap resamples): "
        "both runs are resampled together, image by image. They do not say how much a run varies with its seed."
    )
    return section("results", "Results", *blocks, lede=lede)


def _logits(each: Comparison, i: int) -> np.ndarray:
    prediction, scores = each.predictions[i], each.scores[i]
    return scores.predictions([] if prediction.alpha is None else [prediction.alpha])[prediction]


def _classes(runs: tuple[Run, Run], compared: Sequence[Comparison], names) -> Markup:
    assert runs[0].evidence is not None
    class_names = runs[0].evidence.class_names
    blocks = []
    for each in compared:
        one, other, difference = each.classes
        low, high = difference.low, difference.high
        better, worse = int((low > 0).sum()), int((high < 0).sum())
        said = (
            f"{better} of {len(class_names)} classes are better than in {names[0]} beyond their interval, {worse} are worse. "
            f"Of {len(class_names)} intervals at {multi_label.LEVEL:.0%}, about {len(class_names) * (1 - multi_label.LEVEL):.1f} exclude 0 by chance."
        )
        axis = _symmetric([*low.tolist(), *high.tolist()])
        order = np.argsort(np.where(np.isnan(difference.value), np.inf, -difference.value), kind="stable")
        header = ["class", "images", *names, "difference", "lowest", "highest", tables.axis_text(axis)]
        thresholds = [_thresholds(run, each.predictions[i]) for i, run in enumerate(runs)]
        with_thresholds = any(chosen is not None for chosen in thresholds)
        if with_thresholds:
            header += [f"threshold, {name}" for name in names]
        positives = (each.scores[0].labels > 0).sum(axis=0, dtype=int)
        rows: list[list[tables.Cell]] = []
        for k in order.tolist():
            ends = [float(end[k]) for end in difference]
            row: list[tables.Cell] = [
                class_names[k],
                int(positives[k]),
                float(one[k]),
                float(other[k]),
                tables.Change(ends[0]),
                tables.Change(ends[1]),
                tables.Change(ends[2]),
                "" if np.isnan(ends[0]) else tables.interval_track(ends, axis, COLOURS[1]),
            ]
            if with_thresholds:
                row += [FIXED if chosen is None else float(chosen[k]) for chosen in thresholds]
            rows.append(row)
        table = tables.table(
            header, rows, caption=f"Average precision by class on {each.split}", tall=True, sortable=True
        )
        blocks.append(split_block(runs[0], each.split, element("p", said, class_="note"), table))
    lede = "Average precision (sklearn) of each class in percent, by the difference. Lowest and highest are the ends of its interval."
    return section("classes", "Classes", *blocks, lede=lede)


def _thresholds(run: Run, prediction: Prediction):
    assert run.evidence is not None
    stored = run.evidence.thresholds
    return None if stored is None else stored.of("average", prediction)


def _symmetric(ends) -> scales.Axis:
    """An axis with 0 in its middle."""
    largest = max((abs(end) for end in ends if not np.isnan(end)), default=1.0)
    return scales.fitted("difference", [-largest, largest])
