"""What matters of each split at a glance, and all predictions side by side."""

from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.layout import fold, of_split, section
from cfmlc_jax.report.series import title

METRICS = ("mAP_sklearn", "mAP_voc", "CP", "CR", "CF1", "OP", "OR", "OF1")


def overview(run: Run) -> Markup | None:
    """Tiles and tables of mean average precision with its intervals, of the averaged weights."""
    if not run.splits:
        return None
    how = run.splits[0].average["intervals"]
    lede = (
        f"Mean average precision (mAP) in percent of the averaged weights. Brackets are {how['level']:.0%} bootstrap "
        f"intervals over images ({how['resamples']} resamples), less the bias of few positives, so that a weak classifier’s value lies in the upper part of its interval; a gain’s is that of the difference on the same images."
    )
    tiles = element("div", *(_tile(split) for split in run.splits), class_="tiles")
    return section("results", "Results", tiles, *(_split(run, split) for split in run.splits), lede=lede)


def _tile(split: Split):
    found = split.average["metrics"]["combined"]
    of = split.average["intervals"]["predictions"]["combined"]
    low, high = of["mAP_sklearn"]
    facts = [
        _fact("over whole image", tables.with_interval(*of["gain_sklearn"], sign=True)),
        *_absent_classes(split, found["mAP_sklearn"]),
    ]
    company, located = split.average["company"], split.average["localization"]
    if company:
        lean = company["predictions"]["combined"]["context_auc"]
        facts.append(_fact("context AUC (50 is none)", tables.with_interval(*lean, digits=1)))
    if located:
        rates = located["all"]
        chance = element("small", f"chance {tables.decimal(rates['chance_hit'], 1)}")
        facts.append(
            _fact(
                "pivot hits",
                element("span", tables.decimal(rates["hit"], 1), " % ", chance),
            )
        )
    return element(
        "div",
        element("h3", split.name),
        element("p", tables.decimal(found["mAP_sklearn"]), element("small", " % mAP"), class_="big"),
        element("p", f"combined, [{tables.decimal(low)}, {tables.decimal(high)}]", class_="under"),
        element("dl", *facts),
        class_="tile",
    )


def _absent_classes(split: Split, value):
    """What the classes without a positive image, each 0 in mAP (sklearn), take from it; nothing if there are none."""
    # Results of older versions do not count them.
    counted = split.average.get("classes", {"with_positives": 1, "all": 1})
    present, classes = counted["with_positives"], counted["all"]
    if present == classes:
        return []
    words = f"without the {classes - present} of {classes} classes that have no positive image, each 0 in it"
    return [_fact(words, f"{tables.decimal(value * classes / present)} %")]


def _fact(name, value):
    return element("div", element("dt", name), element("dd", value))


def _split(run: Run, split: Split):
    of = split.average["intervals"]["predictions"]
    axis = scales.fitted("mAP", [end for name in split.predictions for end in of[name]["mAP_sklearn"]])
    header = [
        "prediction",
        "mAP (sklearn)",
        tables.axis_text(axis),
        "mAP (voc)",
        "gain (sklearn)",
        "gain (voc)",
    ]
    rows = [_row(split, name, axis) for name in split.predictions]
    table = tables.table(header, rows, caption=f"Mean average precision on {split.name}")
    return of_split(run, split.name, table, _all_metrics(split))


def _row(split: Split, name, axis):
    found, of = split.average["metrics"][name], split.average["intervals"]["predictions"][name]
    value, (low, high) = found["mAP_sklearn"], of["mAP_sklearn"]
    shown = tables.interval_track((value, low, high), axis, series.colour(name))
    gains = [
        "" if name == "whole" else tables.with_interval(*of[f"gain_{definition}"], sign=True)
        for definition in ("sklearn", "voc")
    ]
    return [
        title(name),
        tables.with_interval(value, low, high),
        shown,
        tables.with_interval(found["mAP_voc"], *of["mAP_voc"]),
        *gains,
    ]


def _all_metrics(split: Split):
    text = {"average": "averaged weights", "weights": "weights of the last step"}
    return fold(
        "All metrics at threshold 0.5, both sets of weights",
        *(
            tables.table(
                [words, *(name.replace("_", " ") for name in METRICS)],
                [
                    [
                        title(name),
                        *(float(split.results[weights]["metrics"][name][metric]) for metric in METRICS),
                    ]
                    for name in split.predictions
                ],
                caption=f"Metrics on {split.name}, {words}, percent",
            )
            for weights, words in text.items()
        ),
    )
