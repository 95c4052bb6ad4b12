"""Figures of an ablation: accuracy, cost, bias, strength of effects, estimated against true effects."""

import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from cfmlc_jax import files
from cfmlc_jax.results.predictions import Prediction

# Okabe and Ito's colours, which colour-blind readers can distinguish. The fixed salt makes the SVG files reproducible.
COLOURS = ["#0072b2", "#d55e00", "#008a66", "#aa4499", "#666a72", "#e69f00"]
STYLE: Any = {
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "legend.frameon": False,
    "svg.hashsalt": "ablation",
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
}
QUIET = "#b4b8bf"
COSTS = {
    "train_gflops": "training, 10⁹ operations",
    "predict_mflops": "prediction, 10⁶ operations per image",
    "predict_images_per_second": "prediction, images per second",
}


def draw(folder: Path, rows, effects) -> list[Path]:
    """Paths of the figures, which are written: accuracy, cost, bias, strength and effects.

    A figure without data is left out. Figures are SVG; that of the effects has thousands of points and is PNG.

    Args:
        folder: where the figures are written.
        rows: `tables.Row`s. Accuracy, cost and strength show the first group only.
        effects: `tables.EffectRow`s.
    """
    group = [row for row in rows if row.group == rows[0].group]
    drawings: dict[str, Callable[[], bool]] = {
        "accuracy": lambda: _accuracy(group),
        "cost": lambda: _cost(group),
        "bias": lambda: _bias(rows),
        "strength": lambda: _strength(group),
        "effects": lambda: _effects(effects),
    }
    written = []
    with plt.rc_context(STYLE):
        for name, drawing in drawings.items():
            if not drawing():
                continue
            data = io.BytesIO()
            kind, dated = ("png", "Software") if name == "effects" else ("svg", "Date")
            plt.savefig(data, format=kind, dpi=100, metadata={dated: None})
            plt.close("all")
            folder.mkdir(exist_ok=True)
            written.append(folder / f"{name}.{kind}")
            files.write_bytes(written[-1], data.getvalue())
    return written


def _splits(rows) -> list[str]:
    return list(dict.fromkeys(row.split for row in rows))


def _main_split(rows) -> str:
    """The split for figures that show one: the second, whose co-occurrence differs from that of training."""
    return _splits(rows)[:2][-1]


def _uses(rows) -> list[list]:
    """For every run and variant, its rows of all seeds and splits: combined predictions, or whole without them.

    Variants that change only counterfactuals are left out, because their predictions equal those of their run.
    """
    factual: dict[tuple, list] = {}
    for prediction in ("combined", "whole"):
        for row in rows:
            if row.prediction == prediction:
                factual.setdefault((row.run, row.variant), []).append(row)
    uses = {key: [row for row in use if row.prediction == use[0].prediction] for key, use in factual.items()}

    def repeats_its_run(run, variant):
        own = uses.get((run, ""), [])
        return variant and [r.mAP_sklearn for r in uses[run, variant]] == [r.mAP_sklearn for r in own]

    return [use for key, use in uses.items() if not repeats_its_run(*key)]


def _spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation of the values; 0 for one value."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _accuracy(rows) -> bool:
    """Draw mAP on every split, one line for each use, sorted by the main split."""
    splits, main_split = _splits(rows), _main_split(rows)

    def value(use, split):
        return _spread(row.mAP_sklearn for row in use if row.split == split)

    uses = sorted(_uses(rows), key=lambda use: value(use, main_split))
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.24 * len(uses)))
    for split in splits:
        means, deviations = zip(*(value(use, split) for use in uses))
        axis.errorbar(means, range(len(uses)), xerr=deviations, fmt="o", markersize=5, label=split)
    axis.set(yticks=range(len(uses)), yticklabels=[use[0].text for use in uses], xlabel="mAP, %")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(splits))
    return True


def _cost(rows) -> bool:
    """Draw mAP against the cost of training and of prediction; a line joins the Pareto front."""
    split = _main_split(rows)
    uses = _uses([row for row in rows if row.split == split])
    uses.sort(key=lambda use: -statistics.mean(row.mAP_sklearn for row in use))
    # Variants use the weights of their run, so they have no training of their own.
    trained = [use for use in uses if not use[0].variant]
    costs = {field: label for field, label in COSTS.items() if field != "train_gflops" or len(trained) > 1}
    figure, axes = plt.subplots(
        1, len(costs), figsize=(3.5 * len(costs), 4 + 0.16 * (len(uses) // 3)), sharey=True
    )
    for axis, (field, label) in zip(axes, costs.items()):
        sign = -1 if field.endswith("second") else 1  # more images per second are a lower cost
        points = []
        for number, use in enumerate(uses, start=1):
            if field != "train_gflops" or use in trained:
                accuracy, deviation = _spread(row.mAP_sklearn for row in use)
                cost = statistics.mean(getattr(row, field) for row in use)
                points.append((sign * cost, accuracy, deviation, number))
        points.sort(key=lambda point: (point[0], -point[1]))
        best = [
            point
            for i, point in enumerate(points)
            if point[1] > max((p[1] for p in points[:i]), default=-1.0)
        ]
        axis.plot([abs(p[0]) for p in best], [p[1] for p in best], color=COLOURS[0], linewidth=1, zorder=1)
        for point in points:
            colour = COLOURS[0] if point in best else QUIET
            axis.errorbar(abs(point[0]), point[1], yerr=point[2], fmt="o", markersize=4, color=colour)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel=label)
        _number(axis, points)
    axes[0].set_ylabel(f"mAP, {split}, %")
    key = [f"{number}  {use[0].text}" for number, use in enumerate(uses, start=1)]
    handles = [plt.Line2D([], [], linestyle="none") for _ in key]
    figure.legend(
        handles, key, loc="outside lower center", ncols=3, fontsize=8, handlelength=0, handletextpad=0
    )
    return True


def _number(axis, points) -> None:
    """Write the number of each point beside it; numbers that would overlap are stacked."""
    low, high = axis.get_ylim()
    step = (high - low) / 26  # a line of text
    taken: list[tuple[float, float]] = []
    for cost, accuracy, _, number in sorted(points, key=lambda point: point[1]):
        height = accuracy
        for other_cost, other in sorted(taken, key=lambda place: place[1]):
            near = 0.87 < cost / other_cost < 1.15
            if near and abs(height - other) < step:
                height = other + step
        taken.append((cost, height))
        axis.annotate(
            str(number), (abs(cost), height), (5, 0), textcoords="offset points", fontsize=7, va="center"
        )


def _bias(rows) -> bool:
    """Draw mAP against the bias of the training scenes; False if the study does not vary the bias."""
    lines: dict[str, dict[float, list]] = {}
    for use in _uses([row for row in rows if row.group.startswith("bias ") and not row.variant]):
        name = use[0].run.rpartition("_bias")[0]
        lines.setdefault(name, {})[float(use[0].group.removeprefix("bias "))] = use
    lines = {name: line for name, line in lines.items() if len(line) > 1}
    if not lines:
        return False
    splits = _splits(rows)
    figure, axes = plt.subplots(1, len(splits), figsize=(3.2 * len(splits), 3.4), squeeze=False, sharey=True)
    for axis, split in zip(axes[0], splits):
        for line in lines.values():
            x = sorted(line)
            spreads = [_spread(row.mAP_sklearn for row in line[bias] if row.split == split) for bias in x]
            means, deviations = zip(*spreads)
            axis.errorbar(x, means, yerr=deviations, marker="o", label=line[x[0]][0].text)
        axis.set(title=split, xlabel="bias of the training scenes")
    axes[0][0].set_ylabel("mAP, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return True


def _strength(rows) -> bool:
    """Draw mAP and excess of false positives against the strength of the effect, one column for each kind.

    Variants are left out, and so are runs that were evaluated with fewer strengths than others.
    False if there are fewer than three strengths.
    """
    split = _main_split(rows)
    own = [row for row in rows if row.split == split and not row.variant]
    factual = {use[0].run: use for use in _uses(own)}
    lines: dict[str, dict[str, dict[float, Sequence]]] = {}
    for row in own:
        prediction = Prediction.parse(row.prediction)
        if prediction.counterfactual is not None and prediction.alpha is not None:
            by_run = lines.setdefault(prediction.counterfactual, {})
            line = by_run.setdefault(row.run, {0.0: factual[row.run]})
            line[prediction.alpha] = [*line.get(prediction.alpha, []), row]
    most = max((len(line) for kind in lines.values() for line in kind.values()), default=0)
    if most < 3:
        return False
    figure, axes = plt.subplots(
        2, len(lines), figsize=(3.4 * len(lines), 6), squeeze=False, sharex=True, sharey="row"
    )
    names = [run for run in factual if any(len(kind.get(run, ())) == most for kind in lines.values())]
    colours = dict(zip(names, COLOURS * len(names)))
    for column, (kind, by_run) in zip(axes.T, lines.items()):
        for run in (run for run in names if len(by_run.get(run, ())) == most):
            x = sorted(by_run[run])
            text = {"color": colours[run], "marker": "o", "markersize": 4, "label": factual[run][0].text}
            column[0].plot(x, [statistics.mean(row.mAP_sklearn for row in by_run[run][a]) for a in x], **text)
            excesses = [[row.excess_fpr for row in by_run[run][a]] for a in x]
            if all(value is not None for values in excesses for value in values):
                column[1].plot(x, [statistics.mean(values) for values in excesses], **text)
        column[0].set(title=f"effect: {kind}")
        column[1].set(xlabel="strength α")
    axes[0][0].set_ylabel(f"mAP, {split}, %")
    axes[1][0].set_ylabel("excess of false positives, points")
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels())
    }  # fmt: skip
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(names)))
    return True


def _effects(effects) -> bool:
    """Draw estimated against true effects, one panel for each run and kind: first seed, last strength of each null."""
    panels: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in effects:
        kind = Prediction.parse(row.prediction).counterfactual
        if kind is not None and (row.seed, row.split) == (effects[0].seed, effects[0].split):
            panels.setdefault((row.text, kind), {})[row.null] = row
    if not panels:
        return False
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(3.4 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, ((text, kind), nulls) in zip(axes.flat, panels.items()):
        for null, row in nulls.items():
            label = f"{null}, r {row.pearson:.2f}"
            axis.plot(row.true, row.estimated, ".", markersize=2.5, alpha=0.35, label=label)
        ends = [end(row.true) for row in nulls.values() for end in (min, max)]
        line = [min(ends), max(ends)]
        axis.plot(line, line, color=COLOURS[4], linewidth=1)
        alpha = Prediction.parse(next(iter(nulls.values())).prediction).alpha
        axis.set_title(f"{text}\n{kind}, α {alpha:g}", fontsize=8)
        legend = axis.legend(fontsize=7, loc="upper left", handletextpad=0, borderpad=0)
        for handle in legend.legend_handles:
            handle.set(alpha=1, markersize=5)
    figure.supxlabel("true effect of the object on its class's logit")
    figure.supylabel("estimated effect")
    return True
