"""Training curves from metrics.jsonl."""

from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.run_files import Run
from cfmlc_jax.report.sections.layout import absent, fold, panels, section
from cfmlc_jax.report.series import Series

LOSSES = {
    "train/loss_whole": ("whole image", "whole"),
    "train/loss_patch": ("patches", "patch"),
    "train/loss": ("sum", "combined"),
}
VALIDATION = {
    "val/weights/mAP_voc": ("last weights", "whole"),
    "val/average/mAP_voc": ("averaged weights", "combined"),
}
EPOCH = {
    "val/weights/mAP_voc": "last weights, voc",
    "val/weights/mAP_sklearn": "sklearn",
    "val/average/mAP_voc": "averaged, voc",
    "val/average/mAP_sklearn": "sklearn",
}
# Of images of one label.
VALIDATION_TOP1 = {
    "val/weights/top1": ("last weights", "whole"),
    "val/average/top1": ("averaged weights", "combined"),
}
EPOCH_TOP1 = {
    f"val/{weights}/{metric}": f"{words}, {metric}" if metric == "top1" else metric
    for weights, words in (("weights", "last weights"), ("average", "averaged"))
    for metric in ("top1", "many", "medium", "few")
}


def training(run: Run) -> Markup:
    """Loss, validation mAP, learning rate and gradient norm over steps."""
    if not run.log:
        return section(
            "training",
            "Training",
            absent("There is no metrics.jsonl here: this folder holds an evaluation only."),
        )
    charts = [
        _chart(run, "Loss", "loss", LOSSES),
        _chart(run, "Validation accuracy", "top-1, %", VALIDATION_TOP1)
        if run.one_label
        else _chart(run, "Validation mAP", "mAP (voc), %", VALIDATION),
        _chart(run, "Learning rate", "rate", {"train/lr": ("learning rate", "combined")}),
        _chart(run, "Norm of the gradient", "norm", {"train/grad_norm": ("norm", "combined")}),
    ]
    return section("training", "Training", panels(*charts, wide=True), _epochs(run))


def _chart(run: Run, title, label, columns):
    lines = [Series(name, colour, _points(run, column)) for column, (name, colour) in columns.items()]
    lines = [line for line in lines if line.points]
    # With one part alone the sum is the same line.
    if len(lines) == 2 and lines[0].points == lines[1].points:
        lines = lines[1:]
    if not lines:
        return None
    steps = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points]
    x = scales.spanning("step", [0, *steps], ticks=5)
    return line_chart(title, lines, x, scales.fitted(label, values))


def _points(run: Run, column):
    """(step, value) of each line that has the column; null, what was not finite, as NaN."""
    return [
        (record["step"], float("nan") if record[column] is None else float(record[column]))
        for record in run.log
        if column in record
    ]


def _epochs(run: Run):
    ends = [record for record in run.log if "epoch" in record]
    if not ends:
        return absent("No epoch has ended yet.")
    columns = EPOCH_TOP1 if run.one_label else EPOCH
    rows = [
        [f"{record['epoch']:g}", int(record["step"]), *(_value(record.get(column)) for column in columns)]
        for record in ends
    ]
    metric = "accuracy" if run.one_label else "mAP"
    return fold(
        "Validation in numbers",
        tables.table(
            ["epoch", "step", *columns.values()],
            rows,
            caption=f"Validation {metric} by epoch, percent",
            tall=True,
        ),
    )


def _value(number):
    return float("nan") if number is None else float(number)
