"""What the strength α of an effect does to accuracy over all and by shots, read off the saved logits."""

import math
from collections.abc import Sequence

import numpy as np

from cfmlc_jax.causal import effects
from cfmlc_jax.metrics import shots
from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.accuracy import WORDS
from cfmlc_jax.report.sections.layout import of_split, panels, section
from cfmlc_jax.report.sections.strength import default_alphas
from cfmlc_jax.report.series import Series
from cfmlc_jax.results import single_label

# Of the lines: what they show, and how.
LINES = {
    "top1": ("combined", None),
    "many": ("whole", "5 3"),
    "medium": ("patch", "5 3"),
    "few": ("tde-pivot", "5 3"),
}
NAMES = {"feature": "the mean feature", "whole": "the null image"}


def shot_strength(run: Run, alphas: Sequence[float] | None) -> Markup | None:
    """A chart of accuracies against α for every effect and split; None without effects.

    Args:
        run: with splits.
        alphas: strengths to read off; None for eleven from 0, those of the configuration and the rule of thumb's.
    """
    if run.evidence is None or not run.splits:
        return None
    kinds = [name.removeprefix("null_") for name in run.splits[0].scores.logits if name.startswith("null_")]
    if not kinds:
        return None
    classes = len(run.evidence.class_names)
    counts: Sequence[float] = run.evidence.class_counts or [math.nan] * classes
    lede = (
        "A total direct effect is the factual logits − α · the counterfactual ones: what the image would get from the mean feature of "
        "training alone (or from a null image). At α 0 it is the factual prediction. The strength is chosen here, not in training; choose it on a "
        "validation split."
    )
    blocks = [_split(run, split, sorted(kinds), _alphas(run, split, alphas), counts) for split in run.splits]
    return section("strength", "Strength of effects", *blocks, lede=lede)


def _alphas(run, split, alphas):
    if alphas:
        return sorted(set(alphas))
    advised = _advised(split)
    named = [*run.evidence.config["effect"]["alphas"], *([] if advised is None else [advised])]
    # Round steps: the largest rounded up to a half.
    return sorted({*default_alphas([math.ceil(2 * max([1.0, *named])) / 2]), *named})


def _advised(split: Split) -> float | None:
    alpha = split.average.get("rule_of_thumb", {}).get("alpha", math.nan)
    return round(alpha, 2) if math.isfinite(alpha) else None


def sweep(split: Split, kind: str, alphas: Sequence[float], counts) -> list[dict[str, float]]:
    """`single_label.METRICS` in percent at each strength."""
    labels = split.scores.labels.argmax(axis=1)
    combined, null = split.scores.logits["combined"], split.scores.logits[f"null_{kind}"]
    return [
        single_label.accuracies(
            effects.total_direct_effect(combined, null, alpha), labels, np.asarray(counts, np.float64)
        )
        for alpha in alphas
    ]


def _split(run: Run, split: Split, kinds, alphas, counts):
    found = {kind: sweep(split, kind, alphas, counts) for kind in kinds}
    advised = _advised(split)
    note = (
        None
        if advised is None
        else f"By the rule of thumb α·cos ≈ 1, α is {advised:g} (mean cosine {split.average['rule_of_thumb']['mean_cosine']:.2f})."
    )
    charts = [_chart(kind, of_kind, alphas, note) for kind, of_kind in found.items()]
    rows: list[list[tables.Cell]] = [
        [f"TDE {kind}, α {alpha:g}", *(values[metric] for metric in single_label.METRICS)]
        for kind, of_kind in found.items()
        for alpha, values in zip(alphas, of_kind, strict=True)
    ]
    header = ["effect", *(WORDS[metric] for metric in single_label.METRICS)]
    table = tables.table(header, rows, caption=f"Strengths on {split.name}, percent", tall=True)
    caption = element("figcaption", element("strong", "Strengths in numbers"))
    numbers = element("figure", caption, table, class_="panel")
    return of_split(run, split.name, panels(*charts, numbers, wide=True))


def _chart(kind, of_kind, alphas, note):
    shown = ["top1", *(group for group in shots.GROUPS if not math.isnan(of_kind[0][group]))]
    lines = [
        Series(
            WORDS[metric],
            LINES[metric][0],
            [(a, values[metric]) for a, values in zip(alphas, of_kind, strict=True)],
            LINES[metric][1],
        )
        for metric in reversed(shown)
    ]
    y = scales.fitted("accuracy, %", [value for line in lines for _, value in line.points])
    words = f"Accuracy and strength against {NAMES[kind]}"
    return line_chart(words, lines, scales.spanning("α", alphas, ticks=5), y, note)
