"""Accuracies of images of one label at a glance, and all predictions side by side."""

import math

from cfmlc_jax.metrics import shots
from cfmlc_jax.report import scales, series, tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.layout import fold, of_split, section
from cfmlc_jax.report.series import title
from cfmlc_jax.results import single_label

WORDS = {"top1": "all", "many": "many shots", "medium": "medium", "few": "few shots", "macro_F1": "macro-F1"}


def accuracy(run: Run) -> Markup | None:
    """Tiles and tables of top-1 accuracy over all images and by shots, of the averaged weights."""
    if not run.splits:
        return None
    how = run.splits[0].average["intervals"]
    lede = (
        f"Top-1 accuracy in percent of the averaged weights: over all images, and the mean over classes of many (more than {shots.MANY} "
        f"training images), medium and few shots (fewer than {shots.FEW}). Brackets are {how['level']:.0%} bootstrap intervals over "
        f"images ({how['resamples']} resamples); a gain’s is that of the difference on the same images."
    )
    tiles = element("div", *(_tile(split) for split in run.splits), class_="tiles")
    return section("results", "Results", tiles, *(_split(run, split) for split in run.splits), lede=lede)


def shown_effect(split: Split) -> str | None:
    """The effect that stands for all: of the strengths the nearest to the rule of thumb, else the first."""
    names = [name for name in split.predictions if name.startswith("tde_")]
    advised = split.average.get("rule_of_thumb", {}).get("alpha", math.nan)
    if not names or math.isnan(advised):
        return names[0] if names else None
    return min(names, key=lambda name: abs(float(name.rpartition("_")[2]) - advised))


def named(prediction: str) -> str:
    """The prediction's name, where the whole image is all there is."""
    return "factual" if prediction == single_label.BASELINE else title(prediction)


def _tile(split: Split):
    name = shown_effect(split) or single_label.BASELINE
    found, of = split.average["metrics"][name], split.average["intervals"]["predictions"][name]
    low, high = of["top1"]
    facts = [_fact(WORDS[group], tables.decimal(float(found[group]), 1)) for group in shots.GROUPS]
    if name != single_label.BASELINE:
        facts.insert(
            0, _fact("over the factual prediction", tables.with_interval(*of["gain_top1"], sign=True))
        )
    advised = split.average.get("rule_of_thumb")
    if advised:
        text = (
            f"{tables.decimal(float(advised['alpha']))} (cos {tables.decimal(float(advised['mean_cosine']))})"
        )
        facts.append(_fact("α by the rule of thumb, α·cos ≈ 1", text))
    return element(
        "div",
        element("h3", split.name),
        element("p", tables.decimal(found["top1"]), element("small", " % right"), class_="big"),
        element("p", f"{named(name)}, [{tables.decimal(low)}, {tables.decimal(high)}]", class_="under"),
        element("dl", *facts),
        class_="tile",
    )


def _fact(name, value):
    return element("div", element("dt", name), element("dd", value))


def _split(run: Run, split: Split):
    of = split.average["intervals"]["predictions"]
    axis = scales.fitted("top-1", [end for name in split.predictions for end in of[name]["top1"]])
    header = ["prediction", "all", tables.axis_text(axis), *(WORDS[group] for group in shots.GROUPS), "gain"]
    rows = [_row(split, name, axis) for name in split.predictions]
    table = tables.table(header, rows, caption=f"Accuracy on {split.name}")
    return of_split(run, split.name, table, _both_weights(split))


def _row(split: Split, name, axis):
    found, of = split.average["metrics"][name], split.average["intervals"]["predictions"][name]
    gain = "" if name == single_label.BASELINE else tables.with_interval(*of["gain_top1"], sign=True)
    return [
        named(name),
        tables.with_interval(found["top1"], *of["top1"]),
        tables.interval_track((found["top1"], *of["top1"]), axis, series.colour(name)),
        *(tables.with_interval(found[group], *of[group], digits=1) for group in shots.GROUPS),
        gain,
    ]


def _both_weights(split: Split):
    text = {"average": "averaged weights", "weights": "weights of the last step"}
    return fold(
        "All numbers, both sets of weights",
        *(
            tables.table(
                [words, *(WORDS[metric] for metric in single_label.METRICS)],
                [
                    [
                        named(name),
                        *(
                            float(split.results[weights]["metrics"][name][metric])
                            for metric in single_label.METRICS
                        ),
                    ]
                    for name in split.predictions
                ],
                caption=f"Accuracy on {split.name}, {words}, percent",
            )
            for weights, words in text.items()
        ),
    )
