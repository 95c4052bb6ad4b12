"""The section of a generator's classifiers: their accuracies, and which cue their predictions follow."""

import math
from collections.abc import Mapping

from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.report import tables
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import absent, section
from cfmlc_jax.results.mechanisms import Accuracies, Stages
from cfmlc_jax.results.read import Run

# By name in `classifiers.names`.
TRAINED_ON = {
    "plain": "real images",
    "invariant": "counterfactual images",
    "real_and_counterfactual": "real and counterfactual images",
    "heads": "real and counterfactual images, a head for each mechanism",
    "decorrelated": "real images whose mechanisms are independent",
}


def cues(run: Run) -> Markup | None:
    """The section with a tile for each classifier and tables of accuracies and cues; None if none is configured."""
    stages = run.stages
    assert stages is not None
    if not stages.names:
        return None
    title, accuracies = "Classifiers", stages.accuracies
    if not accuracies:
        return section("cues", title, absent("No classifier has been evaluated yet."))
    lede = (
        "Top-1 accuracy in percent. In training and in test_iid the mechanisms of an image agree, so that a classifier can use any of them; "
        "in the decorrelated test they are independent, and the class is that of the shape. Training accuracy is on images that the classifier is trained on."
    )
    tiles = element("div", *(_tile(name, values) for name, values in accuracies.items()), class_="tiles")
    return section(
        "cues",
        title,
        tiles,
        element("div", element("h3", "Accuracies"), _table(stages), class_="block"),
        element("div", element("h3", "Which cue predictions follow"), *_followed(accuracies), class_="block"),
        lede=lede,
    )


def _tile(name, values: Accuracies):
    facts = [("train", values.train), ("test_iid", values.test_iid)]
    facts += [(f"errors follow {cue}", values.errors_follow.get(cue, float("nan"))) for cue in MECHANISMS[1:]]
    return element(
        "div",
        element("h3", name.replace("_", " ")),
        element("p", tables.decimal(values.test), element("small", " % correct"), class_="big"),
        element("p", "decorrelated test", class_="under"),
        element(
            "dl",
            *(element("div", element("dt", title), element("dd", _percent(value))) for title, value in facts),
        ),
        class_="tile",
    )


def _percent(value):
    return tables.decimal(value, 1) + ("" if math.isnan(value) else " %")


def _table(stages: Stages):
    rows: list[list[tables.Cell]] = [
        [
            _name(stages, name),
            TRAINED_ON.get(name, ""),
            float(values.train),
            float(values.test_iid),
            float(values.test),
        ]
        for name, values in stages.accuracies.items()
    ]
    header = ["classifier", "trained on", "train", "test_iid", "test, decorrelated"]
    return tables.table(header, rows, caption="Accuracies of classifiers, percent")


def _name(stages: Stages, name):
    """The classifier's name; a link to its own report if it has one."""
    if name not in stages.classifiers:
        return name
    return element("a", name, href=f"../{name}/report/index.html")


def _followed(accuracies: Mapping[str, Accuracies]) -> list[Markup]:
    note = (
        "Percentage of images of the decorrelated test whose predicted class is the label of a mechanism, and the same among wrongly classified "
        "images. With ten classes, chance is 10 %."
    )
    rows: list[list[tables.Cell]] = [
        [
            name,
            _track(name, values),
            *(float(values.follows.get(cue, float("nan"))) for cue in MECHANISMS),
            *(float(values.errors_follow.get(cue, float("nan"))) for cue in MECHANISMS[1:]),
        ]
        for name, values in accuracies.items()
    ]
    header = ["classifier", "0 to 100 %", *MECHANISMS, *(f"errors: {cue}" for cue in MECHANISMS[1:])]
    return [
        tables.key([("dot", cue, cue) for cue in MECHANISMS]),
        tables.table(header, rows, caption="Cues that predictions follow, percent"),
        element("p", note, class_="note"),
    ]


def _track(name, values: Accuracies):
    shown = {cue: values.follows.get(cue, float("nan")) for cue in MECHANISMS}
    words = ", ".join(f"{cue} {tables.decimal(value)} %" for cue, value in shown.items())
    return tables.track([tables.dot(value, cue) for cue, value in shown.items()], text=f"{name}: {words}")
