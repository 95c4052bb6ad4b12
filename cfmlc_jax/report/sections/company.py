"""How labels keep company in training, and how far predictions lean on it."""

from collections.abc import Sequence

import numpy as np

from cfmlc_jax.metrics import cooccurrence
from cfmlc_jax.metrics.bootstrap import ratio
from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.heat_map import heat_map
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.layout import absent, fold, of_split, panels, section
from cfmlc_jax.report.series import title
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.scores import probabilities

MOST_CLASSES = 30  # in a heat map


def company(run: Run) -> Markup | None:
    """Heat maps of the training labels and of the excess of false positives, and the strongest pairs."""
    if run.evidence is None:
        return None
    heading = "Company"
    training, names = run.evidence.training, run.evidence.class_names
    if training is None:
        return section("company", heading, absent(f"Left out, for {run.evidence.missing}."))
    if not training.pairs:
        return section("company", heading, absent("No two classes are together often enough in training."))
    chosen = shown_classes(training, len(names))
    lede = (
        "In training some classes come together. A false positive is in excess where a class that is absent is "
        f"predicted more often beside its company than without: rate with − rate without, at threshold 0.5, over the {len(training.pairs)} "
        "strongest pairs of the training set. A threshold moves that number; the context AUC has none: how often company "
        "raises the score of an absent class, 50 % where it is ignored. (An effect that subtracts one constant per class lowers the first "
        "and cannot change the second.)"
    )
    cut = (
        ""
        if len(chosen) == len(names)
        else f" The {len(chosen)} of {len(names)} classes with the strongest pairs."
    )
    both = np.array(training.counts, float)
    conditional = 100 * ratio(both, np.broadcast_to(both.diagonal(), both.shape))[np.ix_(chosen, chosen)]
    np.fill_diagonal(conditional, np.nan)
    learnt = heat_map(
        "Training labels",
        conditional,
        [names[k] for k in chosen],
        top=max(1.0, float(np.nanmax(conditional))),
        note=f"How often, in percent, the row’s class is in an image with the column’s.{cut}",
    )
    blocks = [_split(run, split, training, names, chosen) for split in run.splits]
    return section("company", heading, panels(learnt, _strongest(training, names)), *blocks, lede=lede)


def _strongest(training: Training, names):
    rows: list[list[tables.Cell]] = [
        [
            f"{names[target]}, {names[context]}",
            100 * training.counts[target][context] / training.counts[context][context],
            100 * training.counts[target][target] / training.images,
        ]
        for target, context in training.pairs
    ]
    words = "Strongest pairs"
    note = element(
        "span", "A class and its company, in percent of training images: beside its company, and in all."
    )
    content = tables.table(["class, company", "beside it", "in all"], rows, caption=words, tall=True)
    return element("figure", element("figcaption", element("strong", words), note), content, class_="panel")


def shown_classes(training: Training, classes: int) -> list[int]:
    """Class indices of a heat map: all, or those of the strongest pairs, partners next to each other."""
    if classes <= MOST_CLASSES:
        return list(range(classes))
    return list(dict.fromkeys(k for pair in training.pairs for k in pair))[:MOST_CLASSES]


def _split(run: Run, split: Split, training: Training, names, chosen):
    found = split.average["company"]
    if not found:
        return None
    return of_split(
        run,
        split.name,
        _means(split, found),
        fold(
            "Excess of false positives, class by class", *_maps(split, training, names, chosen), opened=True
        ),
        fold(f"The {found['pairs']} strongest pairs", *_pairs(split, training, names, found)),
    )


def _means(split: Split, found):
    of = found["predictions"]
    axis = scales.fitted("AUC", [50.0, *(end for name in of for end in of[name]["context_auc"])])
    rows = [
        [
            title(name),
            tables.with_interval(*of[name]["excess_fpr"], digits=1),
            tables.with_interval(*of[name]["context_auc"], digits=1),
            tables.interval_track(of[name]["context_auc"], axis, series.colour(name)),
        ]
        for name in split.predictions
    ]
    header = ["prediction", "excess, points", "context AUC, %", tables.axis_text(axis)]
    return tables.table(header, rows, caption=f"Leaning on company on {split.name}")


def _maps(split: Split, training: Training, names, chosen):
    logits = split.logits
    shown = [name for name in ("whole", "combined", series.effect(split.predictions)) if name]
    place = np.ix_(chosen, chosen)
    excess = {
        name: 100
        * cooccurrence.false_positive_rates(probabilities(logits[name]), split.scores.labels, 0.5).excess[
            place
        ]
        for name in shown
    }
    top = max(1.0, *(float(np.nanmax(np.abs(of), initial=0.0)) for of in excess.values()))
    mark = _marked(training.pairs, chosen)
    shown_names = [names[k] for k in chosen]
    maps = [
        heat_map(title(name), of, shown_names, top=top, positive="tde-pivot", mark=mark)
        for name, of in excess.items()
    ]
    note = (
        f"Percentage points by which the row’s class, absent, is predicted more often beside the column’s class (orange), or less "
        f"often (blue); full colour at {top:.0f}. The strongest pairs are framed."
    )
    return element("p", note), panels(*maps)


def _marked(pairs: Sequence[Sequence[int]], chosen):
    place = {k: i for i, k in enumerate(chosen)}
    return [(place[j], place[i]) for j, i in pairs if j in place and i in place]


def _pairs(split: Split, training: Training, names, found):
    shown = [name for name in ("whole", "combined", series.effect(split.predictions)) if name]
    excess = {name: found["predictions"][name]["by_pair"] for name in shown}
    header = [
        "class, beside",
        "P(class | company)",
        "P(class)",
        "0 to 100 points",
        *(title(name) for name in shown),
    ]
    rows: list[list[tables.Cell]] = []
    for row, (target, context) in enumerate(training.pairs):
        together = training.counts[target][context] / training.counts[context][context]
        values = {name: float(of[row]) for name, of in excess.items()}
        marks = [tables.tick(values["whole"], "whole")]
        marks += [tables.dot(value, series.colour(name)) for name, value in values.items() if name != "whole"]
        label = f"{names[target]}, {names[context]}"
        rows.append(
            [
                label,
                100 * together,
                100 * training.counts[target][target] / training.images,
                tables.track(marks, text=label),
                *values.values(),
            ]
        )
    keys = [("tick" if name == "whole" else "dot", series.colour(name), title(name)) for name in shown]
    return tables.key(keys), tables.table(
        header, rows, caption=f"Strongest pairs on {split.name}, percent", tall=True
    )
