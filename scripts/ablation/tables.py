"""Results of an ablation as CSV and Markdown."""

import csv
import importlib.util
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cfmlc_jax import files
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.tables import markdown

ACCURACY = ("mAP_sklearn", "mAP_voc", "CF1", "OF1")


class Row(NamedTuple):
    """Results of one prediction of a run on a split; accuracies are in percent.

    run, text, group, seed, variant: the run and the variant of using its weights; text is the title in tables.
    train_gflops: 10⁹ floating-point operations of the complete training, as compiled.
    predict_mflops: 10⁶ floating-point operations of the prediction of an image, as compiled.
    excess_fpr, context_auc: dependence on context, see metrics/cooccurrence.py.
    pivot_hit, chance_hit: see metrics/localization.py.
    """

    run: str
    text: str
    group: str
    seed: int
    variant: str = ""
    prediction: str = ""
    split: str = ""
    mAP_sklearn: float = 0.0
    mAP_voc: float = 0.0
    CF1: float = 0.0
    OF1: float = 0.0
    excess_fpr: float | None = None
    context_auc: float | None = None
    pivot_hit: float | None = None
    chance_hit: float | None = None
    train_gflops: float = 0.0
    train_images_per_second: float | None = None
    predict_mflops: float = 0.0
    predict_images_per_second: float = 0.0


class EffectRow(NamedTuple):
    """Agreement between estimated and true effects of objects, in logits. Names as in `Row`.

    prediction: the effect; "combined" without a null: the score itself as the estimate.
    all_pearson, all_slope: with the classes that are absent from a scene, whose true effect is 0.
    absent_mae: mean absolute estimate for these.
    probability_…: of the changes of the class's probability instead of its logit.
    """

    run: str
    text: str
    seed: int
    null: str
    prediction: str
    objects: int
    pearson: float
    spearman: float
    slope: float
    bias: float
    mae: float
    rmse: float
    true: list[float]
    estimated: list[float]
    split: str = "test_balanced"
    all_pearson: float | None = None
    all_slope: float | None = None
    absent_mae: float | None = None
    probability_pearson: float | None = None
    probability_slope: float | None = None
    probability_mae: float | None = None


def write(folder: Path, rows: Sequence[Row], effects: Sequence[EffectRow]) -> list[Path]:
    """Write all files of an ablation and return their paths; figures need matplotlib.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        raise InputError("the study has no runs; there is nothing to write")
    written = [folder / "results.csv", folder / "results.md"]
    files.write_text(written[0], _csv(Row._fields, rows))
    files.write_text(written[1], _markdown(rows, effects))
    if effects:
        kept = [name for name in EffectRow._fields if name not in ("true", "estimated")]
        lines = [[getattr(row, name) for name in kept] for row in effects]
        files.write_text(folder / "effects.csv", _csv(kept, lines))
        written.append(folder / "effects.csv")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed; pip install 'cfmlc_jax[figures]'")
        return written
    from scripts.ablation import figures

    return written + figures.draw(folder / "figures", rows, effects)


def _csv(header, rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)
    return text.getvalue()


def _markdown(rows, effects) -> str:
    parts = ["# Ablation"]
    for group in dict.fromkeys(row.group for row in rows):
        parts.append(f"## {group}\n\n{_group_table([row for row in rows if row.group == group])}")
    if effects:
        parts.append(f"## Effects of objects, estimated against true\n\n{_effect_table(effects)}")
    return "\n\n".join(parts) + "\n"


def _group_table(rows) -> str:
    """A line for every variant of every run: mAP on all splits, context, pivots and cost, mean ± deviation."""
    splits = list(dict.fromkeys(row.split for row in rows))
    last = splits[-1] if len(splits) < 2 else splits[1]
    least = min(row.train_gflops for row in rows) or 1.0
    lines = []
    for key in dict.fromkeys((row.run, row.variant, row.prediction) for row in rows):
        own = [row for row in rows if (row.run, row.variant, row.prediction) == key]
        on_last = [row for row in own if row.split == last]
        lines.append(
            [
                own[0].text,
                key[2],
                *(spread([row.mAP_sklearn for row in own if row.split == split]) for split in splits),
                spread([row.excess_fpr for row in on_last]),
                spread([row.context_auc for row in on_last]),
                spread([row.pivot_hit for row in on_last]),
                spread([row.chance_hit for row in on_last]),
                f"{own[0].train_gflops / least:.2f}",
                f"{own[0].predict_mflops:.0f}",
                f"{statistics.mean(row.predict_images_per_second for row in own):.0f}",
            ]
        )
    header = ["run", "prediction", *(f"mAP {split}" for split in splits)]
    header += [f"excess FPR, {last}", f"context AUC, {last}"]
    header += [f"pivot hits %, {last}", "by chance %"]
    header += ["training, × the least", "MFLOPs/image", "images/s"]
    return markdown(header, lines)


def spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation over seeds, one value alone, or a dash."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.1f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.1f}"


def _effect_table(effects) -> str:
    lines = []
    for key in dict.fromkeys((row.text, row.split, row.null, row.prediction) for row in effects):
        own = [row for row in effects if (row.text, row.split, row.null, row.prediction) == key]
        lines.append([*key, *(_fine([getattr(row, name) for row in own]) for name in _EFFECT_COLUMNS)])
    return markdown(["run", "split", "null", "estimate", *_EFFECT_COLUMNS.values()], lines)


# Fields of `EffectRow` and their titles.
_EFFECT_COLUMNS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "slope": "slope",
    "bias": "bias",
    "mae": "mean abs. error",
    "rmse": "RMS error",
    "all_pearson": "Pearson with absent",
    "all_slope": "slope with absent",
    "absent_mae": "mean abs. error, absent",
    "probability_pearson": "Pearson, probability",
    "probability_slope": "slope, probability",
    "probability_mae": "mean abs. error, probability",
}


def _fine(values):
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2f}"
