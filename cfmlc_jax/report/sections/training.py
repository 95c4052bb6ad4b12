"""The section of training: curves from metrics.jsonl."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.sections.layout import absent, fold, panels, section
from cfmlc_jax.report.series import Series
from cfmlc_jax.results.read import Run

# By set of weights in metrics.jsonl: its name in charts, its name in the table, its colour.
WEIGHTS = {
    "weights": ("raw weights", "raw", "whole"),
    "average": ("averaged weights", "averaged", "combined"),
}


@dataclass(frozen=True)
class Chart:
    """A chart of columns of metrics.jsonl over the steps.

    title: of the chart.
    label: of the vertical axis.
    lines: column -> (name, colour); columns that the log lacks are left out.
    """

    title: str
    label: str
    lines: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class TrainingView:
    """How a system shows its training.

    charts: in order; those without a line are left out.
    columns: column of metrics.jsonl -> its title in the table of epochs.
    caption: of that table.
    """

    charts: Sequence[Chart]
    columns: Mapping[str, str]
    caption: str


def by_weights(metric: str) -> dict[str, tuple[str, str]]:
    """The lines of a validation metric: of the raw and of the averaged weights."""
    return {f"val/{weights}/{metric}": (words, colour) for weights, (words, _, colour) in WEIGHTS.items()}


def training(run: Run, view: TrainingView) -> Markup:
    """The section with charts by step, and a table of epochs."""
    if not run.log:
        return section(
            "training",
            "Training",
            absent("This folder has no metrics.jsonl: it holds an evaluation only."),
        )
    charts = [_chart(run, chart) for chart in view.charts]
    return section("training", "Training", panels(*charts, wide=True), _epochs(run, view))


def _chart(run: Run, chart: Chart):
    lines = [Series(name, colour, _points(run, column)) for column, (name, colour) in chart.lines.items()]
    lines = [line for line in lines if line.points]
    # If the loss has one term only, the sum is the same line.
    if len(lines) == 2 and lines[0].points == lines[1].points:
        lines = lines[1:]
    if not lines:
        return None
    steps = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points]
    x = scales.spanning("step", [0, *steps], ticks=5)
    return line_chart(chart.title, lines, x, scales.fitted(chart.label, values))


def _points(run: Run, column):
    """(step, value) of each line that has the column; null (a non-finite value) becomes NaN."""
    return [
        (record["step"], float("nan") if record[column] is None else float(record[column]))
        for record in run.log
        if column in record
    ]


def _epochs(run: Run, view: TrainingView):
    ends = [record for record in run.log if "epoch" in record]
    if not ends:
        return absent("The first epoch has not ended yet.")
    rows = [
        [
            f"{record['epoch']:g}",
            int(record["step"]),
            *(_value(record.get(column)) for column in view.columns),
        ]
        for record in ends
    ]
    header = ["epoch", "step", *view.columns.values()]
    return fold("Validation in numbers", tables.table(header, rows, caption=view.caption, tall=True))


def _value(number):
    return float("nan") if number is None else float(number)
