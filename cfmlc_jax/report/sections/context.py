"""The section of context: co-occurrence of labels in training, and how much predictions depend on it."""

from collections.abc import Sequence

import numpy as np

from cfmlc_jax.metrics import cooccurrence
from cfmlc_jax.metrics.bootstrap import ratio
from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.heat_map import heat_map
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, fold, panels, section, split_block
from cfmlc_jax.results.evidence import Training
from cfmlc_jax.results.multi_label import THRESHOLD, Context
from cfmlc_jax.results.predictions import COMBINED, WHOLE, Prediction, chief_effect
from cfmlc_jax.results.read import Run, Split
from cfmlc_jax.results.scores import probabilities

MOST_CLASSES = 30  # in a heat map


def context(run: Run) -> Markup | None:
    """The section with heat maps of training labels and of excess false positives, and the strongest pairs."""
    if run.evidence is None:
        return None
    heading = "Context"
    training, names = run.evidence.training, run.evidence.class_names
    if training is None:
        return section("context", heading, absent(f"Not available: {run.evidence.missing}."))
    if not training.pairs:
        return section("context", heading, absent("No two classes co-occur often enough in training."))
    chosen = shown_classes(training, len(names))
    lede = (
        "Some classes co-occur in training. The excess of false positives measures whether an absent class is predicted more often in images "
        f"with its context: false positive rate with the context − rate without, at threshold 0.5, over the {len(training.pairs)} "
        "pairs of classes that co-occur most. It depends on the threshold. The context AUC does not: it is the probability that an image with the "
        "context has a higher score for the absent class than one without; 50 % if context is ignored. (An effect that subtracts a constant "
        "from the logits of a class lowers the excess and cannot change the context AUC.)"
    )
    cut = (
        ""
        if len(chosen) == len(names)
        else f" The {len(chosen)} of {len(names)} classes with the strongest pairs."
    )
    conditional = 100 * ratio(np.array(training.counts), training.of_images())[np.ix_(chosen, chosen)]
    np.fill_diagonal(conditional, np.nan)
    learnt = heat_map(
        "Training labels",
        conditional,
        [names[k] for k in chosen],
        top=max(1.0, float(np.nanmax(conditional))),
        note=f"Percentage of images with the column’s class that have the row’s class too{_known(training)}.{cut}",
    )
    blocks = [_split(run, split, training, names, chosen) for split in run.splits]
    return section("context", heading, panels(learnt, _strongest(training, names)), *blocks, lede=lede)


def _known(training: Training):
    return "" if training.known is None else ", of those where it is known"


def _strongest(training: Training, names):
    of_images = training.of_images().tolist()
    rows: list[list[tables.Cell]] = [
        [
            f"{names[target]}, {names[context]}",
            100 * training.counts[target][context] / of_images[target][context],
            100 * training.counts[target][target] / of_images[target][target],
        ]
        for target, context in training.pairs
    ]
    words = "Strongest pairs"
    note = element(
        "span",
        f"Percentage of training images that have the class{_known(training)}: of images with its context, and of all images.",
    )
    content = tables.table(
        ["class, context", "with context", "in all images"], rows, caption=words, tall=True
    )
    return element("figure", element("figcaption", element("strong", words), note), content, class_="panel")


def shown_classes(training: Training, classes: int) -> list[int]:
    """The class indices of a heat map: all, or those of the strongest pairs, with partners next to each other."""
    if classes <= MOST_CLASSES:
        return list(range(classes))
    return list(dict.fromkeys(k for pair in training.pairs for k in pair))[:MOST_CLASSES]


def _split(run: Run, split: Split, training: Training, names, chosen):
    used = split.multi_label.findings.context
    if used is None:
        return None
    return split_block(
        run,
        split.name,
        _means(split, used),
        fold("Excess of false positives by class", *_maps(split, training, names, chosen), opened=True),
        fold(f"The {used.pairs} strongest pairs", *_pairs(split, training, names, used)),
    )


def _means(split: Split, used: Context):
    uses = used.predictions
    axis = scales.fitted("AUC", [50.0, *(end for use in uses.values() for end in use.context_auc)])
    rows = [
        [
            prediction.title,
            tables.with_interval(*uses[prediction].excess_fpr, digits=1),
            tables.with_interval(*uses[prediction].context_auc, digits=1),
            tables.interval_track(uses[prediction].context_auc, axis, series.colour(prediction)),
        ]
        for prediction in split.predictions
    ]
    header = ["prediction", "excess, points", "context AUC, %", tables.axis_text(axis)]
    return tables.table(header, rows, caption=f"Dependence on context on {split.name}")


def _maps(split: Split, training: Training, names, chosen):
    excess = {
        prediction: 100 * _excess(split, prediction)[np.ix_(chosen, chosen)] for prediction in _shown(split)
    }
    top = max(1.0, *(float(np.nanmax(np.abs(values), initial=0.0)) for values in excess.values()))
    mark = _marked(training.pairs, chosen)
    shown_names = [names[k] for k in chosen]
    maps = [
        heat_map(prediction.title, values, shown_names, top=top, positive="tde-pivot", mark=mark)
        for prediction, values in excess.items()
    ]
    note = (
        f"False positive rate of the row’s class in images with the column’s class − rate in images without, in percentage points: "
        f"orange if positive, blue if negative; full colour at {top:.0f}. The strongest pairs are framed."
    )
    return element("p", note), panels(*maps)


def _shown(split: Split) -> list[Prediction]:
    """The predictions for which single pairs are shown."""
    effect = chief_effect(split.predictions)
    return [WHOLE, COMBINED, *([effect] if effect else [])]


def _excess(split: Split, prediction: Prediction):
    """The excess of false positives of each class with each context: a fraction, [k, k]."""
    predicted = probabilities(split.logits[prediction])
    return cooccurrence.false_positive_rates(predicted, split.scores.labels, THRESHOLD).excess


def _marked(pairs: Sequence[Sequence[int]], chosen):
    place = {k: i for i, k in enumerate(chosen)}
    return [(place[j], place[i]) for j, i in pairs if j in place and i in place]


def _pairs(split: Split, training: Training, names, used: Context):
    excess = {prediction: used.predictions[prediction].by_pair for prediction in _shown(split)}
    # With 0 on the axis, so that the signs can be compared.
    axis = scales.fitted("excess", [0.0, *(float(value) for by_pair in excess.values() for value in by_pair)])
    header = [
        "class, context",
        "P(class | context)",
        "P(class)",
        tables.axis_text(axis, "points"),
        *(prediction.title for prediction in excess),
    ]
    rows: list[list[tables.Cell]] = []
    for row, (target, context) in enumerate(training.pairs):
        together = training.counts[target][context] / training.counts[context][context]
        values = {prediction: float(by_pair[row]) for prediction, by_pair in excess.items()}
        marks = [
            (tables.tick if prediction == WHOLE else tables.dot)(
                axis.place(value, 0.0, 100.0), series.colour(prediction)
            )
            for prediction, value in values.items()
        ]
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
    keys = [("tick" if p == WHOLE else "dot", series.colour(p), p.title) for p in excess]
    return tables.key(keys), tables.table(
        header, rows, caption=f"Strongest pairs on {split.name}, percent", tall=True
    )
