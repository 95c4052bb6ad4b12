"""The section of results: a tile for each split, and tables of all predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.markup import Child, Markup, element
from cfmlc_jax.report.sections.layout import fold, section, split_block
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.read import Run, Split
from cfmlc_jax.results.split import WEIGHTS, Intervals


@dataclass(frozen=True)
class Metric:
    """A metric in the tables of results.

    key: its name in files.
    title: its name in tables.
    digits: number of decimals.
    """

    key: str
    title: str
    digits: int = 2


@dataclass(frozen=True)
class ResultsView:
    """How a task shows its results.

    lede: a function of the intervals of a split -> the introduction.
    metric: the metric in the tiles; it has a track in the tables.
    unit: of the number in the tiles.
    others: further metrics with intervals.
    gains: (name in files, title of the column) of each gain; the first is also in the tiles.
    baseline: the prediction that gains are relative to.
    gain_title: title of the gain in the tiles.
    title: a function of a prediction -> its name.
    chief: a function of a split -> the prediction in its tile.
    facts: a function of a split and a prediction -> further names and values in its tile.
    caption: of the tables of predictions.
    every: the metrics in the tables of raw and averaged weights; `every_summary` is the title of their fold,
        `every_caption` their caption.
    """

    lede: Callable[[Intervals], str]
    metric: Metric
    unit: str
    others: Sequence[Metric]
    gains: Sequence[tuple[str, str]]
    baseline: Prediction
    gain_title: str
    title: Callable[[Prediction], str]
    chief: Callable[[Split], Prediction]
    facts: Callable[[Split, Prediction], list[tuple[str, Child]]]
    caption: str
    every: Sequence[Metric]
    every_summary: str
    every_caption: str


def results(run: Run, view: ResultsView) -> Markup | None:
    """The section with tiles and tables of metrics and intervals; None without splits."""
    if not run.splits:
        return None
    lede = view.lede(run.splits[0].results.findings.intervals)
    tiles = element("div", *(_tile(split, view) for split in run.splits), class_="tiles")
    blocks = [_split(run, split, view) for split in run.splits]
    return section("results", "Results", tiles, *blocks, lede=lede)


def _tile(split: Split, view: ResultsView):
    chief = view.chief(split)
    value, intervals = split.metrics[chief][view.metric.key], _intervals(split, chief)
    low, high = intervals.metrics[view.metric.key]
    facts = view.facts(split, chief)
    if chief != view.baseline:
        gain = intervals.gains[view.gains[0][0]]
        facts.insert(0, (view.gain_title, tables.with_interval(*gain, sign=True)))
    return element(
        "div",
        element("h3", split.name),
        element("p", tables.decimal(value), element("small", f" {view.unit}"), class_="big"),
        element("p", f"{view.title(chief)}, [{tables.decimal(low)}, {tables.decimal(high)}]", class_="under"),
        element("dl", *(element("div", element("dt", name), element("dd", fact)) for name, fact in facts)),
        class_="tile",
    )


def _intervals(split: Split, prediction: Prediction):
    return split.results.findings.intervals.predictions[prediction]


def _split(run: Run, split: Split, view: ResultsView):
    ends = [end for p in split.predictions for end in _intervals(split, p).metrics[view.metric.key]]
    axis = scales.fitted(view.metric.title, ends)
    header = ["prediction", view.metric.title, tables.axis_text(axis)]
    header += [*(metric.title for metric in view.others), *(title for _, title in view.gains)]
    rows = [_row(split, prediction, axis, view) for prediction in split.predictions]
    table = tables.table(header, rows, caption=f"{view.caption} on {split.name}")
    return split_block(run, split.name, table, _both_weights(split, view))


def _row(split: Split, prediction: Prediction, axis, view: ResultsView):
    values, intervals = split.metrics[prediction], _intervals(split, prediction)

    def shown(metric):
        return tables.with_interval(values[metric.key], *intervals.metrics[metric.key], digits=metric.digits)

    estimate = values[view.metric.key], *intervals.metrics[view.metric.key]
    gains = [
        "" if prediction == view.baseline else tables.with_interval(*intervals.gains[name], sign=True)
        for name, _ in view.gains
    ]
    return [
        view.title(prediction),
        shown(view.metric),
        tables.interval_track(estimate, axis, series.colour(prediction)),
        *map(shown, view.others),
        *gains,
    ]


def _both_weights(split: Split, view: ResultsView):
    def table(weights, words):
        measured = split.results.measures[weights].metrics
        rows: list[list[tables.Cell]] = [
            [view.title(p), *(float(measured[p][metric.key]) for metric in view.every)]
            for p in split.predictions
        ]
        header = [words, *(metric.title for metric in view.every)]
        return tables.table(header, rows, caption=f"{view.every_caption} on {split.name}, {words}, percent")

    return fold(view.every_summary, *(table(name, WEIGHTS[name]) for name in reversed(WEIGHTS)))
