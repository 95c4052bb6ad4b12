"""The section of classes: a metric of each class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.report import series, tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.gallery import links
from cfmlc_jax.report.sections.layout import fold, section, split_block
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.read import Run, Split

_MARKS = {"bar": tables.bar, "tick": tables.tick, "dot": tables.dot}


@dataclass(frozen=True)
class ClassTable:
    """The content of a table of the k classes of a split.

    order: class indices in the order of the rows.
    facts: columns before the metric; each is a title and one value per class.
    values: the metric of each class in percent, by prediction.
    marks: the mark of each prediction on the track: "bar", "tick" or "dot".
    changes: columns after the metric; each is a title and one difference per class.
    """

    order: Sequence[int]
    facts: Sequence[tuple[str, Sequence[tables.Cell]]]
    values: dict[Prediction, np.ndarray]
    marks: dict[Prediction, str]
    changes: Sequence[tuple[str, np.ndarray]] = ()


@dataclass(frozen=True)
class ClassesView:
    """How a task shows its classes.

    lede: the introduction.
    metric: name of the metric.
    title: a function of a prediction -> its name.
    table: a function of a run and a split -> the content of its table.
    """

    lede: Callable[[Run], str]
    metric: str
    title: Callable[[Prediction], str]
    table: Callable[[Run, Split], ClassTable]


def classes(run: Run, view: ClassesView) -> Markup | None:
    """The section with a table of classes for each split; None without splits."""
    if not run.splits or run.evidence is None:
        return None
    names = run.evidence.class_names
    blocks = []
    for split in run.splits:
        table = view.table(run, split)
        caption = f"{view.metric} by class on {split.name}"
        shown = _table(table, names, links(run, split.name), caption, view.title)
        blocks.append(
            split_block(
                run, split.name, fold(f"{len(names)} classes", _key(table, view.title), shown, opened=True)
            )
        )
    return section("classes", "Classes", *blocks, lede=view.lede(run))


def _key(table: ClassTable, title):
    return tables.key([(mark, series.colour(p), title(p)) for p, mark in table.marks.items()])


def _table(table: ClassTable, names, places, caption, title) -> Markup:
    header = ["class", *(name for name, _ in table.facts), "0 to 100 %"]
    header += [*(title(p) for p in table.values), *(name for name, _ in table.changes)]
    rows: list[list[tables.Cell]] = [
        [
            element("a", names[k], href=f"#{places[k]}") if k in places else names[k],
            *(values[k] for _, values in table.facts),
            _track(table, names[k], k, title),
            *(float(values[k]) for values in table.values.values()),
            *(tables.Change(float(values[k])) for _, values in table.changes),
        ]
        for k in table.order
    ]
    return tables.table(header, rows, caption=caption, tall=True, sortable=True)


def _track(table: ClassTable, name, k, title):
    values = {prediction: float(values[k]) for prediction, values in table.values.items()}
    marks = [_MARKS[mark](values[p], series.colour(p)) for p, mark in table.marks.items()]
    words = ", ".join(f"{title(p)} {tables.decimal(value)} %" for p, value in values.items())
    return tables.track(marks, text=f"{name}: {words}")
