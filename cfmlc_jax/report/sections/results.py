"""What matters of each split at a glance, and all predictions side by side."""

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
    """A metric of the results.

    key: its name in files.
    title: its name in tables.
    digits: decimals that are shown.
    """

    key: str
    title: str
    digits: int = 2


@dataclass(frozen=True)
class ResultsView:
    """The metrics of a task, as this section shows them.

    lede: how to read them, given the intervals of a split.
    metric: the one of the tile, which has a track in the table.
    unit: of the tile's number.
    others: further metrics with intervals.
    gains: names of gains in files, and of their columns; the first is the tile's.
    baseline: what gains are over.
    gain_title: name of the tile's gain.
    title: a prediction's name.
    chief: the prediction of a split's tile.
    facts: names and values that a tile has of a split's prediction beyond the gain.
    caption: of the table of predictions.
    every: metrics of both sets of weights, under the summary `every_summary`, in tables of the caption
        `every_caption`.
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
    """Tiles and tables of the averaged weights' metrics with their intervals; None without splits."""
    if not run.splits:
        return None
    lede = view.lede(run.splits[0].results.findings.intervals)
    tiles = element("div", *(_tile(split, view) for split in run.splits), class_="tiles")
    blocks = [_split(run, split, view) for split in run.splits]
    return section("results", "Results", tiles, *blocks, lede=lede)


def _tile(split: Split, view: ResultsView):
    chief = view.chief(split)
    value, own = split.metrics[chief][view.metric.key], _intervals(split, chief)
    low, high = own.metrics[view.metric.key]
    facts = view.facts(split, chief)
    if chief != view.baseline:
        gain = own.gains[view.gains[0][0]]
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
    values, own = split.metrics[prediction], _intervals(split, prediction)

    def shown(metric):
        return tables.with_interval(values[metric.key], *own.metrics[metric.key], digits=metric.digits)

    estimate = values[view.metric.key], *own.metrics[view.metric.key]
    gains = [
        "" if prediction == view.baseline else tables.with_interval(*own.gains[name], sign=True)
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
