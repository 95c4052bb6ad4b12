"""What the strength of an effect does, read off the saved logits."""

from collections.abc import Sequence

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.causal import effects
from cfmlc_jax.metrics.bootstrap import mean_of_defined
from cfmlc_jax.metrics.context_auc import weighted_context_auc
from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup
from cfmlc_jax.report.run_files import Run, Split
from cfmlc_jax.report.sections.layout import fold, of_split, panels, section
from cfmlc_jax.report.series import Series
from cfmlc_jax.results.scores import mean_average_precisions, probabilities

COLUMNS = {
    "mAP_sklearn": "mAP (sklearn)",
    "mAP_voc": "mAP (voc)",
    "CF1": "CF1",
    "OF1": "OF1",
    "context_auc": "context AUC",
}


def strength(run: Run, alphas: Sequence[float] | None) -> Markup | None:
    """mAP, F1 and leaning on company against the strength α of each effect.

    Args:
        run: with splits.
        alphas: strengths to read off; None for eleven from 0 and those of the configuration.
    """
    if run.evidence is None:
        return None
    kinds = [name.removeprefix("null_") for name in run.splits[0].scores.logits if name.startswith("null_")]
    if not kinds:
        return None
    chosen = sorted(set(alphas)) if alphas else default_alphas(run.evidence.config["effect"]["alphas"])
    null = run.evidence.config["effect"]["null"]
    lede = (
        f"A total direct effect is combined − α · (combined of the counterfactual); what is taken away shows the null “{null}”. "
        "At α 0 it is the combined prediction. With one null for all images, TDE whole shifts a class’s logits alike: its mAP is a level line by construction."
    )
    pairs = run.evidence.training.pairs if run.evidence.training else []
    blocks = [_split(run, split, sorted(kinds, reverse=True), chosen, pairs) for split in run.splits]
    return section("strength", "Strength of effects", *blocks, lede=lede)


def default_alphas(configured: Sequence[float]) -> list[float]:
    """Eleven strengths from 0 to the largest configured one, at least 1, and the configured ones."""
    top = max(1.0, *configured) if configured else 1.0
    return sorted({round(top * i / 10, 4) for i in range(11)} | {float(alpha) for alpha in configured})


def sweep(split: Split, kind: str, alphas: Sequence[float], pairs) -> list[dict[str, float]]:
    """The numbers of `COLUMNS` in percent at each strength; without pairs no context AUC."""
    labels, null = split.scores.labels, split.scores.logits[f"null_{kind}"]
    combined = split.scores.logits["combined"]
    # One null for all images ranks them as the combined prediction does, but for its rounding.
    of_ranks = _of_ranks(combined, labels, pairs) if (null == null[:1]).all() else None
    found = []
    for alpha in alphas:
        logits = effects.total_direct_effect(combined, null, alpha)
        decided = metrics.thresholded(probabilities(logits), labels, 0.5)
        found.append(decided | (of_ranks or _of_ranks(logits, labels, pairs)))
    return found


def _of_ranks(logits, labels, pairs):
    values = mean_average_precisions(logits, labels)
    if pairs:
        auc = weighted_context_auc(logits, labels, pairs)(np.ones((1, len(labels))))
        values["context_auc"] = float(100 * mean_of_defined(auc)[0])
    return values


def _split(run: Run, split: Split, kinds, alphas, pairs):
    found = {kind: sweep(split, kind, alphas, pairs) for kind in kinds}
    shown = ["mAP_sklearn", "OF1", *(["context_auc"] if pairs else [])]
    charts = [_chart(f"{COLUMNS[name]} and strength", name, found, alphas) for name in shown]
    columns = {name: words for name, words in COLUMNS.items() if name in next(iter(found.values()))[0]}
    rows: list[list[tables.Cell]] = [
        [f"TDE {kind}, α {alpha:g}", *(values[name] for name in columns)]
        for kind, of_kind in found.items()
        for alpha, values in zip(alphas, of_kind, strict=True)
    ]
    table = tables.table(
        ["effect", *columns.values()], rows, caption=f"Strengths on {split.name}, percent", tall=True
    )
    return of_split(run, split.name, panels(*charts), fold("Strengths in numbers", table))


def _chart(title, name, found, alphas):
    lines = [
        Series(
            f"TDE {kind}",
            f"tde-{kind}",
            [(a, values[name]) for a, values in zip(alphas, of_kind, strict=True)],
        )
        for kind, of_kind in found.items()
    ]
    y = scales.fitted(f"{COLUMNS[name]}, %", [value for line in lines for _, value in line.points])
    return line_chart(title, lines, scales.spanning("α", alphas, ticks=5), y)
