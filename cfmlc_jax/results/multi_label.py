"""Results of a split whose images have any number of labels; all numbers in percent."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.metrics import cooccurrence, localization
from cfmlc_jax.metrics.bootstrap import interval, values_and_gains, weighted_mean_average_precision
from cfmlc_jax.metrics.context_auc import mean_context_auc
from cfmlc_jax.results import scores as scoring
from cfmlc_jax.results.json_types import FormatError, Formerly, require_keys
from cfmlc_jax.results.predictions import COMBINED, WHOLE, Prediction
from cfmlc_jax.results.scores import Scores, probabilities
from cfmlc_jax.results.split import (
    WEIGHTS,
    Ends,
    Estimate,
    Intervals,
    PredictionIntervals,
    RuleOfThumb,
    SplitResults,
)

METRICS = ("mAP_sklearn", "mAP_voc", "CP", "CR", "CF1", "OP", "OR", "OF1")
LEVEL = 0.95
THRESHOLD = 0.5
# Pairs of classes whose co-occurrence is measured; more would average over what is hardly learnt.
PAIRS = 20
# Entries of [n, k] above which intervals come from half as many resamples: minutes, not more.
MANY_ENTRIES = 1_000_000
BASELINE = WHOLE


@dataclass(frozen=True)
class Classes:
    """Classes of the split.

    with_positives: how many have an image.
    all: how many there are.
    """

    with_positives: int
    all: int


@dataclass(frozen=True)
class Measures:
    """Metrics of one set of weights.

    metrics: `METRICS` at threshold 0.5.
    thresholds: CP CR CF1 OP OR OF1 by threshold ("0.50", …) and of the "top3".
    classes: of the split; not in files of older versions.
    """

    metrics: dict[Prediction, dict[str, float]]
    thresholds: dict[Prediction, dict[str, dict[str, float]]]
    classes: Classes | None = None


@dataclass(frozen=True)
class ContextUse:
    """How far one prediction leans on context.

    excess_fpr: mean of `cooccurrence.mean_excess_false_positive_rate`, percentage points.
    context_auc: mean context AUC, free of a threshold; 50 where context is ignored.
    undefined: pairs without an excess.
    by_pair: the excess of each pair.
    """

    excess_fpr: Estimate
    context_auc: Estimate
    undefined: int
    by_pair: list[float]


@dataclass(frozen=True)
class Context:
    """How far predictions lean on context, over pairs of a target and its context.

    threshold: of the false positives.
    level, resamples: of the intervals.
    pairs: how many.
    predictions: of each prediction.
    """

    threshold: float
    level: float
    resamples: int
    pairs: int
    predictions: dict[Prediction, ContextUse]


@dataclass(frozen=True)
class Localization:
    """Hit rates and shares of the pivots.

    all: over all pairs of an image and a class with a box.
    by_size: of "small", "medium" and "large" objects.
    by_span: of objects that fit a patch ("within"), and that do not ("spanning").
    by_class: by class name.
    relative: sizes are fractions of the picture.
    images_without_boxes, boxes_without_area: what is left out.
    """

    all: localization.Rates
    by_size: dict[str, localization.Rates]
    by_span: dict[str, localization.Rates]
    by_class: dict[str, localization.Rates]
    relative: bool
    images_without_boxes: int
    boxes_without_area: int


@dataclass(frozen=True)
class Findings:
    """Further results of the averaged weights.

    intervals: of both mAPs, and of their gains over `BASELINE` ("sklearn", "voc").
    context: None without training labels, or without a pair of classes.
    localization: None without patches or boxes.
    rule_of_thumb: None without a mean feature.
    """

    intervals: Intervals
    context: Annotated[Context | None, Formerly("company")]
    localization: Localization | None
    rule_of_thumb: RuleOfThumb | None = None


@dataclass(frozen=True)
class MultiLabelResults(SplitResults[Measures, Findings]):
    """The results of a multi-label split."""

    measures_type = Measures
    findings_type = Findings

    def require_complete(self, place: str) -> None:
        """Raise unless every prediction has its metrics, thresholds, intervals and use of context."""
        for weights in WEIGHTS:
            measures, inside = self.measures[weights], f"{place}.{weights}"
            for prediction, values in measures.metrics.items():
                require_keys(values, METRICS, f"{inside}.metrics.{prediction}")
            require_keys(measures.thresholds, measures.metrics, f"{inside}.thresholds")
            if measures.classes is not None and measures.classes.with_positives < 1:
                raise FormatError(f"{inside}.classes.with_positives is {measures.classes.with_positives}")
        predictions, inside = self.measures["average"].metrics, f"{place}.average"
        require_keys(self.findings.intervals.predictions, predictions, f"{inside}.intervals.predictions")
        for prediction in predictions:
            here = f"{inside}.intervals.predictions.{prediction}"
            own = self.findings.intervals.predictions[prediction]
            require_keys(own.metrics, [f"mAP_{d}" for d in metrics.AP_DEFINITIONS], here)
            require_keys(own.gains, metrics.AP_DEFINITIONS, f"{here}.gain")
        if self.findings.context is not None:
            require_keys(self.findings.context.predictions, predictions, f"{inside}.context.predictions")


def measures(scores: Scores, alphas) -> Measures:
    """What is measured of one set of weights, at each of the strengths of effects."""
    present = int(np.asarray(scores.labels).any(axis=0).sum())
    return Measures(
        metrics=scoring.summarise(scores, alphas),
        thresholds=scoring.sweep(scores, alphas),
        classes=Classes(with_positives=present, all=scores.labels.shape[1]),
    )


def resamples(scores: Scores) -> int:
    """How many bootstrap resamples a split of this size gets: 200, or 100 where each takes long."""
    return 100 if scores.labels.size > MANY_ENTRIES else 200


def intervals(scores: Scores, alphas, generator: np.random.Generator) -> Intervals:
    """Bootstrap intervals over images of each prediction's mAP, and of its gain over `BASELINE`.

    A gain's interval is that of the difference on the same images: it is narrower than the two intervals
    suggest.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        generator: of the bootstrap's draws.
    """
    predictions = scores.predictions(alphas)
    rankings = _rankings(scores, predictions)
    distinct = list(dict.fromkeys(rankings.values()))
    base = distinct.index(BASELINE)
    count = resamples(scores)
    by_prediction = {prediction: PredictionIntervals({}, {}) for prediction in predictions}
    for definition in metrics.AP_DEFINITIONS:
        statistics = [
            weighted_mean_average_precision(predictions[ranking], scores.labels, definition)
            for ranking in distinct
        ]
        statistic, bounds = values_and_gains(statistics, base)
        both = interval(
            statistic,
            len(scores.labels),
            generator=generator,
            resamples=count,
            level=LEVEL,
            bounds=bounds,
        )
        for prediction, own in by_prediction.items():
            row = distinct.index(rankings[prediction])
            own.metrics[f"mAP_{definition}"] = Ends(float(both.low[row]), float(both.high[row]))
            own.gains[definition] = Estimate(*(float(part[len(statistics) + row]) for part in both))
    return Intervals(LEVEL, count, by_prediction)


def _rankings(scores: Scores, predictions) -> dict[Prediction, Prediction]:
    """Which prediction's ranking of images each prediction has: its own, mostly.

    An effect whose null is one for all images ranks them as the combined prediction does.
    """
    null = scores.counterfactuals.get("whole")
    constant = null is not None and bool((null == null[:1]).all())
    return {
        prediction: COMBINED if constant and prediction.kind == "tde_whole" else prediction
        for prediction in predictions
    }


def context(scores: Scores, alphas, pairs, generator: np.random.Generator) -> Context:
    """How far each prediction leans on context, over pairs of a target and its context.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        pairs: [m, 2], m at least 1, from the training set.
        generator: of the bootstrap's draws.
    """
    pairs = np.asarray(pairs)
    count, seed = resamples(scores), int(generator.integers(2**63))

    def draws():
        # The same for all, so that equal predictions have equal intervals.
        return {"generator": np.random.default_rng(seed), "resamples": count, "level": LEVEL}

    predictions = scores.predictions(alphas)
    rankings = _rankings(scores, predictions)
    aucs: dict[Prediction, Estimate] = {}
    uses = {}
    for prediction, logits in predictions.items():
        chances = probabilities(logits)
        mean = cooccurrence.mean_excess_false_positive_rate(
            chances, scores.labels, THRESHOLD, pairs, **draws()
        )
        ranking = rankings[prediction]
        if ranking not in aucs:
            auc = mean_context_auc(predictions[ranking], scores.labels, pairs, **draws())
            aucs[ranking] = Estimate(*_percent(auc))
        rates = cooccurrence.false_positive_rates(chances, scores.labels, THRESHOLD)
        uses[prediction] = ContextUse(
            excess_fpr=Estimate(*_percent(mean.excess)),
            context_auc=aucs[ranking],
            undefined=mean.undefined,
            by_pair=_percent(rates.excess[tuple(pairs.T)]),
        )
    return Context(THRESHOLD, LEVEL, count, len(pairs), uses)


def localized(pairs: localization.Pairs, class_names, *, relative: bool) -> Localization:
    """Hit rates and shares of the pivots, in all and by size, span and class.

    Args:
        pairs: of `localization.localize`.
        class_names: in label order.
        relative: as in `localization.by_size`.
    """
    by_class = localization.by_class(pairs, len(class_names))
    return Localization(
        all=_in_percent(localization.rates(pairs)),
        by_size={name: _in_percent(r) for name, r in localization.by_size(pairs, relative=relative).items()},
        by_span={name: _in_percent(r) for name, r in localization.by_span(pairs).items()},
        by_class={name: _in_percent(r) for name, r in zip(class_names, by_class, strict=True)},
        relative=relative,
        images_without_boxes=pairs.images_without_boxes,
        boxes_without_area=pairs.boxes_without_area,
    )


def _in_percent(rates: localization.Rates) -> localization.Rates:
    fractions = dataclasses.asdict(rates)
    return localization.Rates(pairs=fractions.pop("pairs"), **{n: 100 * x for n, x in fractions.items()})


def _percent(values) -> list[float]:
    return [100 * float(value) for value in values]
