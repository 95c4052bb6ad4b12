"""How the report shows the training of classifiers."""

from collections.abc import Mapping

from cfmlc_jax.report.sections.training import WEIGHTS, Chart, TrainingView, by_weights

_LOSSES = {
    "train/loss_whole": ("whole image", "whole"),
    "train/loss_patch": ("patches", "patch"),
    "train/loss_real": ("real images", "whole"),
    "train/loss_shape": ("shape head", "shape"),
    "train/loss_texture": ("texture head", "texture"),
    "train/loss_background": ("background head", "background"),
    "train/loss": ("sum", "combined"),
}


def view(chart: str, label: str, metrics: Mapping[str, str], caption: str) -> TrainingView:
    """Charts of loss, validation metric, learning rate and gradient norm, and a table of validation metrics.

    Args:
        chart: title of the chart of the first metric.
        label: of its vertical axis.
        metrics: name in metrics.jsonl -> title in the table.
        caption: of the table.
    """
    columns = {
        f"val/{weights}/{metric}": title if i else f"{words}, {title}"
        for weights, (_, words, _) in WEIGHTS.items()
        for i, (metric, title) in enumerate(metrics.items())
    }
    charts = [
        Chart("Loss", "loss", _LOSSES),
        Chart(chart, label, by_weights(next(iter(metrics)))),
        Chart("Learning rate", "rate", {"train/lr": ("learning rate", "combined")}),
        Chart("Gradient norm", "norm", {"train/grad_norm": ("norm", "combined")}),
    ]
    return TrainingView(charts, columns, caption)
