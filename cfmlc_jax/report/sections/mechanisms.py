"""The section of mechanisms: sheets of what a generator draws, at the end of training and after its epochs."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from cfmlc_jax.cgn.validation import warnings_of
from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, fold, section
from cfmlc_jax.report.series import evenly
from cfmlc_jax.results.mechanisms import Picture, Stages
from cfmlc_jax.results.read import Run

Log = Sequence[Mapping[str, Any]]

_MASKS = "masks"  # the tile of their metrics, among the sheets
# Columns of two: figures that stand under each other.
_COLUMNS = (
    ("mechanisms",),
    ("interpolated_labels", "interpolated_noise", _MASKS),
    ("exchanged_texture",),
    ("exchanged_background",),
)
_TITLES = {
    "mechanisms": ("Mechanisms of each class", "Last, the shape with the texture and background of other classes."),
    "exchanged_texture": ("Exchanged textures", "The shape is that of the row, the texture that of the column."),
    "exchanged_background": ("Exchanged backgrounds", "The shape is that of the row, the background that of the column."),
    "interpolated_labels": ("From class to class", "One mechanism at a time, with the same noise, and all together."),
    "interpolated_noise": ("From noise to noise", "One mechanism at a time, of the same class, and all together."),
}  # fmt: skip
_FACTS = {
    "mask_iou": "overlap with that mask (IoU)",
    "mask_mean": "mean of all pixels",
    "mask_deviation": "deviation between masks",
    "mask_binary": "pixels below .1 or above .9",
}
MOST_EPOCHS = 8  # whose sheets are shown
_MOST_WARNINGS = 3  # that are shown at once
_AVERAGE = "val/average/"


def mechanisms(run: Run) -> Markup:
    """The section with what is missing, warnings, the final sheets, and those after epochs."""
    stages = run.stages
    assert stages is not None
    lede = (
        "An image is composed of three mechanisms: a mask (the shape) filled with a texture, on a background. Each is generated on its own, "
        "so that they can be exchanged: the result is a counterfactual image, with a shape, a texture and a background of different classes."
    )
    figures = {name: _sheet(name, picture) for name, picture in stages.sheets.items()}
    tile = _masks(run.log)
    if tile is not None:
        figures[_MASKS] = tile
    columns = [
        element("div", *(figures[name] for name in names), class_="stack")
        for names in ([name for name in names if name in figures] for names in _COLUMNS)
        if names
    ]
    shown = element("div", *columns, class_="panels wide") if columns else None
    return section(
        "mechanisms",
        "Mechanisms",
        _missing(stages, run.log),
        _warnings(run.log),
        shown,
        _epochs(stages.epochs),
        lede=lede,
    )


def _missing(stages: Stages, log: Log) -> Markup | None:
    """A sentence with the stages that are not done; None if all are."""
    ended = max((int(record["epoch"]) for record in log if "epoch" in record), default=0)
    waiting = [name for name in stages.names if name not in stages.accuracies]
    missing = [
        text
        for text, is_missing in (
            (f"{stages.num_epochs - ended} of {stages.num_epochs} epochs", ended < stages.num_epochs),
            ("the sheets at the end of training", len(stages.sheets) < len(_TITLES)),
            ("the counterfactual records", not stages.generated),
            (f"the accuracies of the classifiers {', '.join(waiting)}", bool(waiting)),
        )
        if is_missing
    ]
    if not missing:
        return None
    return absent(f"Not here yet: {'; '.join(missing)}. To resume, run the same command again.")


def _warnings(log: Log) -> Markup | None:
    """The warnings after each epoch, the last epoch first; None without warnings."""
    lines = [
        element("li", f"Epoch {record['epoch']:g}: {line.removeprefix('warning: ')}.")
        for record in reversed(log)
        for line in _warnings_after(record)
    ]
    if not lines:
        return None
    if len(lines) <= _MOST_WARNINGS:
        return element("ul", *lines, class_="absent warnings")
    rest = element("ul", *lines[_MOST_WARNINGS:], class_="warnings")
    return element(
        "div",
        element("ul", *lines[:_MOST_WARNINGS], class_="warnings"),
        fold(f"{len(lines) - _MOST_WARNINGS} warnings after earlier epochs", rest),
        class_="absent",
    )


def _masks(log: Log) -> Markup | None:
    """A tile with the metrics of masks after the last epoch; None before."""
    ends = [record for record in log if "epoch" in record]
    if not ends:
        return None
    metrics = _averaged(ends[-1])
    facts = [
        element("div", element("dt", words), element("dd", f"{tables.decimal(metrics[name], 1)} %"))
        for name, words in _FACTS.items()
        if name in metrics
    ]
    return element(
        "div",
        element("h3", f"Masks after epoch {ends[-1]['epoch']:g}"),
        element(
            "p",
            tables.decimal(metrics.get("shape_accuracy", float("nan")), 1),
            element("small", " % shape accuracy"),
            class_="big",
        ),
        element("p", "nearest real mask is of the class that was asked for", class_="under"),
        element("dl", *facts),
        class_="tile",
    )


def _averaged(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of the averaged weights."""
    return {
        name.removeprefix(_AVERAGE): float("nan") if value is None else float(value)
        for name, value in record.items()
        if name.startswith(_AVERAGE)
    }


def _warnings_after(record: Mapping[str, Any]) -> list[str]:
    if "epoch" not in record:
        return []
    return warnings_of(_averaged(record))


def _sheet(name, picture: Picture) -> Markup:
    title, note = _TITLES[name]
    caption = element("figcaption", element("strong", title), element("span", note))
    return element("figure", caption, _image(picture, f"{title}. {note}"), class_="panel")


def _epochs(epochs: Mapping[int, Picture]) -> Markup | None:
    """The sheets after epochs side by side; None if there are none."""
    if not epochs:
        return None
    chosen = evenly(list(epochs), MOST_EPOCHS)
    figures = [
        element(
            "figure",
            element("figcaption", element("strong", f"epoch {epoch}")),
            _image(epochs[epoch], f"Sheet after epoch {epoch}"),
            class_="small",
        )
        for epoch in chosen
    ]
    cut = "" if len(chosen) == len(epochs) else f" {len(chosen)} of {len(epochs)} epochs are shown."
    note = (
        "The same noise after each epoch, a class in each row: mask, texture, background, composite, and the shape with the texture and "
        f"background of other classes. Averaged weights.{cut}"
    )
    return element(
        "div",
        element("h3", "Over training"),
        element("p", note, class_="note"),
        element("div", *figures, class_="smalls sheets"),
        class_="block",
    )


def _image(picture: Picture, text: str) -> Markup:
    data = base64.b64encode(picture.data).decode("ascii")
    return element(
        "img",
        src=f"data:image/png;base64,{data}",
        width=picture.width,
        height=picture.height,
        alt=text,
        class_="sheet",
    )
