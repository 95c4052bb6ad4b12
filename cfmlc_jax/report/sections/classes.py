"""Average precision of every class."""

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.report import series, tables
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.layout import fold, of_split, section
from cfmlc_jax.report.series import title


def classes(run: Run) -> Markup | None:
    """A table of classes for every split, the best first."""
    if not run.splits or run.evidence is None:
        return None
    names = run.evidence.class_names
    blocks = [
        of_split(
            run, split.name, fold(f"{len(names)} classes", _key(split), _table(split, names), opened=True)
        )
        for split in run.splits
    ]
    lede = "Average precision (sklearn) in percent of each class, highest first; classes without a positive image come last."
    return section("classes", "Classes", *blocks, lede=lede)


def _key(split):
    effect = series.effect(split.predictions)
    entries = [("bar", "combined", "combined"), ("tick", "whole", "whole image")]
    if effect:
        entries.append(("dot", series.colour(effect), title(effect)))
    return tables.key(entries)


def _table(split: Split, names) -> Markup:
    logits = split.logits
    shown = ["combined", "whole"] + [name for name in [series.effect(split.predictions)] if name]
    positives = split.scores.labels.sum(axis=0, dtype=int)
    ap = {
        name: np.where(
            positives > 0,
            100 * metrics.average_precision(logits[name], split.scores.labels, "sklearn"),
            np.nan,
        )
        for name in shown
    }
    order = np.argsort(np.where(positives > 0, -ap["combined"], np.inf), kind="stable")
    header = ["class", "images", "0 to 100 %", *(title(name) for name in shown), "combined − whole"]
    rows = [
        [
            names[k],
            int(positives[k]),
            _track(names[k], {name: float(of[k]) for name, of in ap.items()}),
            *(float(of[k]) for of in ap.values()),
            tables.Change(float(ap["combined"][k] - ap["whole"][k])),
        ]
        for k in order.tolist()
    ]
    return tables.table(header, rows, caption=f"Average precision by class on {split.name}", tall=True)


def _track(name, ap):
    marks = [tables.bar(ap["combined"], "combined"), tables.tick(ap["whole"], "whole")]
    marks += [tables.dot(value, series.colour(of)) for of, value in ap.items() if of.startswith("tde_")]
    return tables.track(marks, text=f"{name}: {tables.decimal(ap['combined'])} %")
