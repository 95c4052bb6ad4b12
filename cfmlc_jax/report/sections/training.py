"""The section of training: curves from metrics.jsonl."""

from dataclasses import dataclass

from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.sections.layout import absent, fold, panels, section
from cfmlc_jax.report.series import Series
from cfmlc_jax.results.read import Run

LOSSES = {
    "train/loss_whole": ("whole image", "whole"),
    "train/loss_patch": ("patches", "patch"),
    "train/loss_real": ("real images", "whole"),
    "train/loss_shape": ("shape head", "shape"),
    "train/loss_texture": ("texture head", "texture"),
    "train/loss_background": ("background head", "background"),
    "train/loss": ("sum", "combined"),
}
# By set of weights in metrics.jsonl: its name in charts, its name in the table, its colour.
WEIGHTS = {
    "weights": ("raw weights", "raw", "whole"),
    "average": ("averaged weights", "averaged", "combined"),
}


@dataclass(frozen=True)
class TrainingView:
    """How a task shows its validation.

    chart: title of the chart of the metric.
    label: of the vertical axis.
    metric: its name in metrics.jsonl.
    columns: name in metrics.jsonl -> title of the column in the table, for each metric.
    caption: of the table.
    """

    chart: str
    label: str
    metric: str
    columns: dict[str, str]
    caption: str


def training(run: Run, view: TrainingView) -> Markup:
    """The section with loss, validation metric, learning rate and gradient norm by step."""
    if not run.log:
        return section(
            "training",
            "Training",
            absent("This folder has no metrics.jsonl: it holds an evaluation only."),
        )
    validated = {
        f"val/{weights}/{view.metric}": (words, colour) for weights, (words, _, colour) in WEIGHTS.items()
    }
    charts = [
        _chart(run, "Loss", "loss", LOSSES),
        _chart(run, view.chart, view.label, validated),
        _chart(run, "Learning rate", "rate", {"train/lr": ("learning rate", "combined")}),
        _chart(run, "Gradient norm", "norm", {"train/grad_norm": ("norm", "combined")}),
    ]
    return section("training", "Training", panels(*charts, wide=True), _epochs(run, view))


def _chart(run: Run, title, label, columns):
    lines = [Series(name, colour, _points(run, column)) for column, (name, colour) in columns.items()]
    lines = [line for line in lines if line.points]
    # If the loss has one term only, the sum is the same line.
    if len(lines) == 2 and lines[0].points == lines[1].points:
        lines = lines[1:]
    if not lines:
        return None
    steps = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points]
    x = scales.spanning("step", [0, *steps], ticks=5)
    return line_chart(title, lines, x, scales.fitted(label, values))


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
    columns = {
        f"val/{weights}/{metric}": title if i else f"{words}, {title}"
        for weights, (_, words, _) in WEIGHTS.items()
        for i, (metric, title) in enumerate(view.columns.items())
    }
    rows = [
        [f"{record['epoch']:g}", int(record["step"]), *(_value(record.get(column)) for column in columns)]
        for record in ends
    ]
    header = ["epoch", "step", *columns.values()]
    return fold("Validation in numbers", tables.table(header, rows, caption=view.caption, tall=True))


def _value(number):
    return float("nan") if number is None else float(number)
