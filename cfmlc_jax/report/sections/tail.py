"""Accuracy of every class, from the commonest in training to the rarest."""

import numpy as np

from cfmlc_jax.metrics import shots
from cfmlc_jax.report import series, tables
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.accuracy import named, shown_effect
from cfmlc_jax.report.sections.layout import fold, of_split, section


def tail(run: Run) -> Markup | None:
    """A table of classes for every split, by their number of training images."""
    if not run.splits or run.evidence is None:
        return None
    names, counts = run.evidence.class_names, run.evidence.class_counts
    blocks = [
        of_split(
            run,
            split.name,
            fold(f"{len(names)} classes", _key(split), _table(split, names, counts), opened=True),
        )
        for split in run.splits
    ]
    lede = "Share of each class’s images that are predicted to be of it, in percent"
    lede += (
        ", the commonest class in training first."
        if counts
        else "; how many training images they have is not known."
    )
    return section("classes", "Classes", *blocks, lede=lede)


def _key(split):
    effect = shown_effect(split)
    entries = [("bar", "whole", named("whole"))]
    if effect:
        entries.append(("dot", series.colour(effect), named(effect)))
    return tables.key(entries)


def _table(split: Split, names, counts) -> Markup:
    labels = split.scores.labels.argmax(axis=1)
    shown = ["whole", *([effect] if (effect := shown_effect(split)) else [])]
    accuracy = {
        name: 100 * shots.per_class_accuracy(split.logits[name].argmax(axis=1), labels, len(names))
        for name in shown
    }
    order = range(len(names)) if counts is None else np.argsort(-np.asarray(counts), kind="stable").tolist()
    header = [
        "class",
        "training images",
        "shots",
        "images",
        "0 to 100 %",
        *(named(name) for name in shown),
    ]
    images = np.bincount(labels, minlength=len(names))
    rows: list[list[tables.Cell]] = [
        [
            names[k],
            "–" if counts is None else int(counts[k]),
            "–" if counts is None else _group(counts[k]),
            int(images[k]),
            _track(names[k], {name: float(of[k]) for name, of in accuracy.items()}),
            *(float(of[k]) for of in accuracy.values()),
        ]
        for k in order
    ]
    return tables.table(header, rows, caption=f"Accuracy by class on {split.name}", tall=True)


def _group(count):
    return next(name for name in shots.GROUPS if shots.group([count], name)[0])


def _track(name, values):
    marks = [tables.bar(values["whole"], "whole")]
    marks += [tables.dot(value, series.colour(of)) for of, value in values.items() if of != "whole"]
    text = ", ".join(f"{named(of)} {tables.decimal(value)} %" for of, value in values.items())
    return tables.track(marks, text=f"{name}: {text}")
