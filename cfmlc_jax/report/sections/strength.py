"""The section of effects: metrics against the strength α, computed from the saved logits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfmlc_jax.report import scales, tables
from cfmlc_jax.report.line_chart import line_chart
from cfmlc_jax.report.markup import Markup, element
from cfmlc_jax.report.sections.layout import fold, panels, section, split_block
from cfmlc_jax.report.series import Series
from cfmlc_jax.results.predictions import KINDS, effect_of
from cfmlc_jax.results.read import Run, Split

# Metrics in percent by name, for each of several strengths.
Sweep = list[dict[str, float]]


@dataclass(frozen=True)
class Line:
    """A line of a chart: one metric of the effect that subtracts one kind of counterfactual."""

    name: str
    colour: str
    counterfactual: str
    metric: str
    dash: str | None = None


@dataclass(frozen=True)
class Chart:
    """A chart of lines against the strength. Lines without values are left out.

    title: of the chart.
    label: of the vertical axis.
    lines: the last is drawn on top.
    """

    title: str
    label: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class StrengthView:
    """How a task shows effects.

    lede: a function of a run -> the introduction.
    metrics: name in the sweep -> title in tables.
    sweep: a function of run, split, kind of counterfactual and strengths -> metrics at each strength; a
        metric that cannot be computed may be missing.
    charts: a function of the kinds of counterfactuals -> charts.
    """

    lede: Callable[[Run], str]
    metrics: dict[str, str]
    sweep: Callable[[Run, Split, str, Sequence[float]], Sweep]
    charts: Callable[[Sequence[str]], list[Chart]]


def strength(run: Run, view: StrengthView, alphas: Sequence[float] | None) -> Markup | None:
    """The section with charts and a table of metrics by strength, for all effects; None without effects.

    Args:
        run: evaluated or not.
        view: how its task shows effects.
        alphas: strengths to show; None: eleven from 0, those of the configuration and that of the rule of
            thumb.
    """
    if run.evidence is None or not run.splits:
        return None
    counterfactuals = sorted(
        run.splits[0].scores.counterfactuals, key=lambda each: KINDS.index(effect_of(each, 0).kind)
    )
    if not counterfactuals:
        return None
    configured = run.evidence.config["effect"]["alphas"]
    blocks = [
        _split(run, split, view, counterfactuals, _alphas(split, configured, alphas)) for split in run.splits
    ]
    return section("strength", "Strength of effects", *blocks, lede=view.lede(run))


def default_alphas(configured: Sequence[float]) -> list[float]:
    """Eleven strengths from 0 to 1 or the largest configured one, whichever is larger, and all configured ones."""
    top = max(1.0, *configured) if configured else 1.0
    return sorted({round(top * i / 10, 4) for i in range(11)} | {float(alpha) for alpha in configured})


def _alphas(split: Split, configured, alphas):
    if alphas:
        return sorted(set(alphas))
    rule_alpha = _rule_alpha(split)
    if rule_alpha is None:
        return default_alphas(configured)
    named = [*configured, rule_alpha]
    # Round the largest up to a multiple of 0.5, for round steps.
    return sorted({*default_alphas([math.ceil(2 * max([1.0, *named])) / 2]), *named})


def _rule_alpha(split: Split) -> float | None:
    """The strength by the rule of thumb, rounded; None if there is none."""
    rule = split.results.findings.rule_of_thumb
    return round(rule.alpha, 2) if rule is not None and math.isfinite(rule.alpha) else None


def _note(split: Split):
    rule, rule_alpha = split.results.findings.rule_of_thumb, _rule_alpha(split)
    if rule is None or rule_alpha is None:
        return None
    return f"The rule of thumb α·cos ≈ 1 gives α = {rule_alpha:g} (mean cosine {rule.mean_cosine:.2f})."


def _split(run: Run, split: Split, view: StrengthView, counterfactuals, alphas):
    sweeps = {each: view.sweep(run, split, each, alphas) for each in counterfactuals}
    charts = [_chart(chart, sweeps, alphas, _note(split)) for chart in view.charts(counterfactuals)]
    charts = [chart for chart in charts if chart is not None]
    numbers = _numbers(split, view, sweeps, alphas)
    words = "Strengths in numbers"
    if len(charts) > 1:
        return split_block(run, split.name, panels(*charts), fold(words, numbers))
    # A single chart leaves room for the table at its side.
    caption = element("figcaption", element("strong", words))
    figure = element("figure", caption, numbers, class_="panel")
    return split_block(run, split.name, panels(*charts, figure, wide=True))


def _chart(chart: Chart, sweeps, alphas, note):
    lines = []
    for line in chart.lines:
        values = [values.get(line.metric, math.nan) for values in sweeps[line.counterfactual]]
        if not all(math.isnan(value) for value in values):
            points = list(zip(alphas, values, strict=True))
            lines.append(Series(line.name, line.colour, points, line.dash))
    if not lines:
        return None
    y = scales.fitted(chart.label, [value for line in lines for _, value in line.points])
    return line_chart(chart.title, lines, scales.spanning("α", alphas, ticks=5), y, note)


def _numbers(split: Split, view: StrengthView, sweeps, alphas):
    measured = next(iter(sweeps.values()))[0]
    columns = {name: title for name, title in view.metrics.items() if name in measured}
    rows: list[list[tables.Cell]] = [
        [
            effect_of(each, alpha).title,
            *(values[name] for name in columns),
        ]
        for each, sweep in sweeps.items()
        for alpha, values in zip(alphas, sweep, strict=True)
    ]
    caption = f"Strengths on {split.name}, percent"
    return tables.table(["effect", *columns.values()], rows, caption=caption, tall=True)
