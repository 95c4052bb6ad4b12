"""What ablate.py found, as CSV, Markdown and figures."""

import csv
import importlib.util
import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cfmlc_jax import files
from cfmlc_jax.errors import InputError
from cfmlc_jax.report.tables import markdown

ACCURACY = ("mAP_sklearn", "mAP_voc", "CF1", "OF1")


class Row(NamedTuple):
    """A prediction of a run on a split, percent where nothing else is said.

    run, text, group, seed, variant: which run and which use of its weights; text is its name in tables.
    train_gflops: floating-point operations of the whole training, 10⁹; predict_mflops: of the
        prediction of an image, 10⁶, both as compiled.
    excess_fpr, context_auc: leaning on company, see metrics/cooccurrence.py.
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
    """How well an estimate of objects' effects agrees with the truth; both in logits. Names as in `Row`."""

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


def write(folder: Path, rows: Sequence[Row], effects: Sequence[EffectRow]) -> list[Path]:
    """All files of an ablation; their paths. Figures only where matplotlib is installed.

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("the study has no runs; there is nothing to write")
    written = [folder / "results.csv", folder / "results.md"]
    files.write_text(written[0], _csv(Row._fields, rows))
    files.write_text(written[1], _markdown(rows, effects))
    if effects:
        kept = EffectRow._fields[:-2]
        files.write_text(folder / "effects.csv", _csv(kept, [row[: len(kept)] for row in effects]))
        written.append(folder / "effects.csv")
    if importlib.util.find_spec("matplotlib") is None:
        print("no figures: matplotlib is not installed; pip install 'cfmlc_jax[figures]'")
        return written
    return written + _figures(folder / "figures", rows, effects)


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
    """A line for every use of every run: mAP on all splits, company, pivots and cost, mean ± deviation."""
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
                f"{own[0].train_gflops / least:.2f}",
                f"{own[0].predict_mflops:.0f}",
                f"{statistics.mean(row.predict_images_per_second for row in own):.0f}",
            ]
        )
    header = ["run", "prediction", *(f"mAP {split}" for split in splits)]
    header += [f"excess FPR, {last}", f"context AUC, {last}", f"pivot hits %, {last}"]
    header += ["training, × the least", "MFLOPs an image", "images/s"]
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
    for key in dict.fromkeys((row.text, row.null, row.prediction) for row in effects):
        own = [row for row in effects if (row.text, row.null, row.prediction) == key]
        measured = ("pearson", "spearman", "slope", "bias", "mae", "rmse")
        lines.append([*key, *(_fine([getattr(row, name) for row in own]) for name in measured)])
    header = [
        "run",
        "null",
        "estimate",
        "Pearson",
        "Spearman",
        "slope",
        "bias",
        "mean abs. error",
        "RMS error",
    ]
    return markdown(header, lines)


def _fine(values):
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def _figures(folder: Path, rows, effects) -> list[Path]:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    # Okabe and Ito's colours, which colour-blind eyes tell apart; stable ids, so that files are the same again.
    style: Any = {
        "axes.prop_cycle": plt.cycler(
            color=["#0072b2", "#d55e00", "#008a66", "#aa4499", "#666a72", "#e69f00"]
        ),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "font.size": 9,
        "svg.hashsalt": "ablation",
        "svg.fonttype": "none",
        "figure.constrained_layout.use": True,
    }
    drawings: dict[str, Callable[[Any], bool]] = {
        "training_cost": lambda plot: _cost_figure(plot, rows, "train_gflops", "training, GFLOPs"),
        "prediction_cost": lambda plot: _cost_figure(
            plot, rows, "predict_mflops", "prediction, MFLOPs an image"
        ),
        "bias": lambda plot: _bias_figure(plot, rows),
        "strength": lambda plot: _strength_figure(plot, rows),
        "effects": lambda plot: _effect_figure(plot, effects),
    }
    written = []
    with plt.rc_context(style):
        for name, draw in drawings.items():
            if not draw(plt):
                continue
            data = io.BytesIO()
            plt.savefig(data, format="svg", metadata={"Date": None})
            plt.close("all")
            folder.mkdir(exist_ok=True)
            files.write_bytes(folder / f"{name}.svg", data.getvalue())
            written.append(folder / f"{name}.svg")
    return written


def _main_rows(rows, split):
    """For every use of every run its best-known prediction: combined where there is one."""
    return [row for row in rows if row.split == split and row.prediction == "combined"] + [
        row
        for row in rows
        if row.split == split and row.prediction == "whole" and not _has_combined(rows, row)
    ]


def _has_combined(rows, row):
    return any(
        other.prediction == "combined" and (other.run, other.variant) == (row.run, row.variant)
        for other in rows
    )


def _cost_figure(plt, rows, cost, label) -> bool:
    """mAP of every run on every split against a cost; a point for every use, a bar for its deviation."""
    group = rows[0].group
    splits = list(dict.fromkeys(row.split for row in rows))
    figure, axes = plt.subplots(1, len(splits), figsize=(3.6 * len(splits), 4.2), squeeze=False)
    for axis, split in zip(axes[0], splits):
        chosen = [row for row in _main_rows(rows, split) if row.group == group]
        for i, key in enumerate(dict.fromkeys((row.run, row.variant) for row in chosen)):
            own = [row for row in chosen if (row.run, row.variant) == key]
            values = [row.mAP_sklearn for row in own]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            marker = "os^Dv<>p*hX"[i // 6 % 11]
            axis.errorbar(
                getattr(own[0], cost),
                statistics.mean(values),
                yerr=deviation,
                fmt=marker,
                label=own[0].text,
                color=f"C{i % 6}",
            )
        axis.set(title=split, xlabel=label, ylabel="mAP, %", xscale="log")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return True


def _bias_figure(plt, rows) -> bool:
    """mAP against the bias of the training scenes, where the study varies it."""
    found: dict[str, set[float]] = {}
    for row in rows:
        if row.group.startswith("bias ") and not row.variant:
            found.setdefault(row.run.rpartition("_bias")[0], set()).add(
                float(row.group.removeprefix("bias "))
            )
    several = [run for run, biases in found.items() if len(biases) > 1]
    if not several:
        return False
    splits = list(dict.fromkeys(row.split for row in rows))
    figure, axes = plt.subplots(1, len(splits), figsize=(3.2 * len(splits), 3.4), squeeze=False, sharey=True)
    for axis, split in zip(axes[0], splits):
        for run in several:
            points = []
            for bias in sorted(found[run]):
                own = [
                    row
                    for row in _main_rows(rows, split)
                    if row.run == f"{run}_bias{bias:g}" and not row.variant
                ]
                values = [row.mAP_sklearn for row in own]
                points.append(
                    (bias, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                )
            text = next(row.text for row in rows if row.run.startswith(f"{run}_bias"))
            x, y, deviation = zip(*points)
            axis.errorbar(x, y, yerr=deviation, marker="o", label=text)
        axis.set(title=split, xlabel="bias of the training scenes", ylabel="mAP, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return True


def _strength_figure(plt, rows) -> bool:
    """mAP and excess of false positives against the strength of the total direct effect."""
    group = rows[0].group
    split = list(dict.fromkeys(row.split for row in rows))[-1]
    split = "test_balanced" if any(row.split == "test_balanced" for row in rows) else split
    chosen = [row for row in rows if row.group == group and row.split == split]
    lines: dict[str, dict[float, list[Row]]] = {}
    for row in chosen:
        if row.prediction.startswith("tde_"):
            _, kind, alpha = row.prediction.split("_")
            line = lines.setdefault(f"{row.text}, {kind}", {})
            line.setdefault(float(alpha), []).append(row)
            factual = [
                r
                for r in chosen
                if r.prediction == "combined"
                and (r.run, r.variant, r.seed) == (row.run, row.variant, row.seed)
            ]
            if factual and not any(r.seed == row.seed for r in line.get(0.0, [])):
                line.setdefault(0.0, []).extend(factual)
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.4))
    for name, points in lines.items():
        x = sorted(points)
        axes[0].plot(
            x, [statistics.mean(r.mAP_sklearn for r in points[a]) for a in x], marker="o", label=name
        )
        known = [a for a in x if all(r.excess_fpr is not None for r in points[a])]
        axes[1].plot(
            known, [statistics.mean(r.excess_fpr or 0.0 for r in points[a]) for a in known], marker="o"
        )
    axes[0].set(title=f"mAP, {split}", xlabel="alpha", ylabel="%")
    axes[1].set(title=f"excess of false positives, {split}", xlabel="alpha", ylabel="percentage points")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return True


def _effect_figure(plt, effects) -> bool:
    """Estimated against true effects, a panel for every run and kind; the first seed, its last alpha of each null."""
    first = [row for row in effects if row.seed == effects[0].seed] if effects else []
    panels: dict[tuple[str, str], dict[str, EffectRow]] = {}
    for row in first:
        _, kind, _alpha = row.prediction.split("_")
        panels.setdefault((row.text, kind), {})[row.null] = row
    if not panels:
        return False
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3 * columns, 3 * lines), squeeze=False, sharex=True, sharey=True
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((text, kind), nulls) in zip(axes.flat, panels.items()):
        for null, row in nulls.items():
            axis.plot(
                row.true, row.estimated, ".", markersize=3, alpha=0.5, label=f"{null}, r {row.pearson:.2f}"
            )
        low, high = min(min(r.true) for r in nulls.values()), max(max(r.true) for r in nulls.values())
        axis.plot([low, high], [low, high], color="#999999", linewidth=1)
        alpha = next(iter(nulls.values())).prediction.rpartition("_")[2]
        axis.set_title(f"{text}\n{kind}, alpha {alpha}", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
    figure.supxlabel("true effect of the object on its logit")
    figure.supylabel("estimated effect")
    return True
