"""Results of the multi-label task on a split; all metrics in percent."""

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
from cfmlc_jax.results.thresholds import Thresholds

METRICS = ("mAP_sklearn", "mAP_voc", "CP", "CR", "CF1", "OP", "OR", "OF1")
LEVEL = 0.95
THRESHOLD = 0.5
# Number of pairs of classes whose context is measured; weaker pairs are hardly learnt.
PAIRS = 20
# Splits with more entries of [n, k] get half as many resamples, so that intervals take minutes.
MANY_ENTRIES = 1_000_000
BASELINE = WHOLE


@dataclass(frozen=True)
class Classes:
    """Numbers of classes and of labels in a split.

    with_positives: classes with at least one positive image.
    all: all classes.
    unknown: entries [n, k] whose label is unknown, which no metric counts.
    """

    with_positives: int
    all: int
    unknown: int = 0

    def to_json(self) -> dict[str, int]:
        """The fields by name, without `unknown` if all labels are known."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name != "unknown"}


@dataclass(frozen=True)
class Measures:
    """Metrics of one set of weights.

    metrics: `METRICS`, at threshold 0.5.
    thresholds: CP CR CF1 OP OR OF1 by threshold ("0.50", …), and for the three highest classes ("top3").
    classes: of the split; None in files of older versions.
    """

    metrics: dict[Prediction, dict[str, float]]
    thresholds: dict[Prediction, dict[str, dict[str, float]]]
    classes: Classes | None = None


@dataclass(frozen=True)
class ContextUse:
    """How much one prediction depends on context.

    excess_fpr: `cooccurrence.mean_excess_false_positive_rate`, percentage points.
    context_auc: mean context AUC, which needs no threshold; 50 if the prediction ignores context.
    undefined: number of pairs whose excess is undefined.
    by_pair: the excess of each pair.
    """

    excess_fpr: Estimate
    context_auc: Estimate
    undefined: int
    by_pair: list[float]


@dataclass(frozen=True)
class Context:
    """How much predictions depend on context, over pairs of a target class and a context class.

    threshold: for false positives.
    level, resamples: of the intervals.
    pairs: number of pairs.
    predictions: by prediction.
    """

    threshold: float
    level: float
    resamples: int
    pairs: int
    predictions: dict[Prediction, ContextUse]


@dataclass(frozen=True)
class Localization:
    """How well pivot patches hit the boxes of their class.

    all: over all pairs of an image and a class with a box.
    by_size: for "small", "medium" and "large" objects.
    by_span: for objects that lie in one patch ("within"), and others ("spanning").
    by_class: by class name.
    relative: sizes of objects are relative to the image, not in pixels.
    images_without_boxes, boxes_without_area: how many were left out.
    """

    all: localization.Rates
    by_size: dict[str, localization.Rates]
    by_span: dict[str, localization.Rates]
    by_class: dict[str, localization.Rates]
    relative: bool
    images_without_boxes: int
    boxes_without_area: int


@dataclass(frozen=True)
class Decisions:
    """Metrics at fitted thresholds.

    title: of the thresholds, such as "best F1 on val".
    split: that they were fitted on.
    predictions: CP CR CF1 OP OR OF1 of the predictions that have thresholds.
    """

    title: str
    split: str
    predictions: dict[Prediction, dict[str, float]]


@dataclass(frozen=True)
class Findings:
    """Further results, of the averaged weights only.

    intervals: of both mAPs, and of their gains over `BASELINE` ("sklearn", "voc").
    context: None without training labels, or if no two classes co-occur often enough.
    localization: None without patches or boxes.
    rule_of_thumb: None without a mean feature.
    decisions: None without fitted thresholds.
    """

    intervals: Intervals
    context: Annotated[Context | None, Formerly("company")]
    localization: Localization | None
    rule_of_thumb: RuleOfThumb | None = None
    decisions: Decisions | None = None


@dataclass(frozen=True)
class MultiLabelResults(SplitResults[Measures, Findings]):
    """The results of a split in the multi-label task."""

    measures_type = Measures
    findings_type = Findings

    def require_complete(self, place: str) -> None:
        """Raise unless every prediction has metrics, thresholds, intervals and context."""
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
            prediction_intervals = self.findings.intervals.predictions[prediction]
            require_keys(prediction_intervals.metrics, [f"mAP_{d}" for d in metrics.AP_DEFINITIONS], here)
            require_keys(prediction_intervals.gains, metrics.AP_DEFINITIONS, f"{here}.gain")
        if self.findings.context is not None:
            require_keys(self.findings.context.predictions, predictions, f"{inside}.context.predictions")


def measures(scores: Scores, alphas) -> Measures:
    """The metrics of one set of weights, with effects at each strength of `alphas`."""
    labels = np.asarray(scores.labels)
    present, unknown = int((labels > 0).any(axis=0).sum()), int((labels < 0).sum())
    return Measures(
        metrics=scoring.summarise(scores, alphas),
        thresholds=scoring.sweep(scores, alphas),
        classes=Classes(with_positives=present, all=labels.shape[1], unknown=unknown),
    )


def decisions(scores: Scores, alphas, weights: str, thresholds: Thresholds) -> Decisions:
    """Metrics of the predictions that have thresholds of a set of weights, at these.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        weights: the set of weights that gave the scores.
        thresholds: fitted ones.
    """
    by_prediction = {
        prediction: metrics.thresholded(probabilities(logits), scores.labels, values)
        for prediction, logits in scores.predictions(alphas).items()
        if (values := thresholds.of(weights, prediction)) is not None
    }
    return Decisions(title=thresholds.title, split=thresholds.split, predictions=by_prediction)


def resamples(scores: Scores) -> int:
    """The number of bootstrap resamples for a split: 200, or 100 for a large one."""
    return 100 if scores.labels.size > MANY_ENTRIES else 200


def intervals(scores: Scores, alphas, generator: np.random.Generator) -> Intervals:
    """Bootstrap intervals over images, for the mAP of each prediction and its gain over `BASELINE`.

    The interval of a gain is that of the difference on the same images; it is narrower than the two separate
    intervals suggest.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        generator: for the bootstrap.
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
        for prediction, entry in by_prediction.items():
            row = distinct.index(rankings[prediction])
            entry.metrics[f"mAP_{definition}"] = Ends(float(both.low[row]), float(both.high[row]))
            entry.gains[definition] = Estimate(*(float(part[len(statistics) + row]) for part in both))
    return Intervals(LEVEL, count, by_prediction)


def _rankings(scores: Scores, predictions) -> dict[Prediction, Prediction]:
    """For each prediction, the prediction that ranks images equally and is scored in its place.

    That is mostly the prediction itself. If the null is the same for all images, "tde_whole" ranks images as
    "combined" does.
    """
    null = scores.counterfactuals.get("whole")
    constant = null is not None and bool((null == null[:1]).all())
    return {
        prediction: COMBINED if constant and prediction.kind == "tde_whole" else prediction
        for prediction in predictions
    }


def context(scores: Scores, alphas, pairs, generator: np.random.Generator) -> Context:
    """How much each prediction depends on context, over pairs of a target class and a context class.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        pairs: [m, 2], m at least 1, from the training split.
        generator: for the bootstrap.
    """
    pairs = np.asarray(pairs)
    count, seed = resamples(scores), int(generator.integers(2**63))

    def bootstrap():
        # The same resamples for all, so that equal predictions have equal intervals.
        return {"generator": np.random.default_rng(seed), "resamples": count, "level": LEVEL}

    predictions = scores.predictions(alphas)
    rankings = _rankings(scores, predictions)
    aucs: dict[Prediction, Estimate] = {}
    uses = {}
    for prediction, logits in predictions.items():
        predicted = probabilities(logits)
        mean = cooccurrence.mean_excess_false_positive_rate(
            predicted, scores.labels, THRESHOLD, pairs, **bootstrap()
        )
        ranking = rankings[prediction]
        if ranking not in aucs:
            auc = mean_context_auc(predictions[ranking], scores.labels, pairs, **bootstrap())
            aucs[ranking] = Estimate(*_percent(auc))
        rates = cooccurrence.false_positive_rates(predicted, scores.labels, THRESHOLD)
        uses[prediction] = ContextUse(
            excess_fpr=Estimate(*_percent(mean.excess)),
            context_auc=aucs[ranking],
            undefined=mean.undefined,
            by_pair=_percent(rates.excess[tuple(pairs.T)]),
        )
    return Context(THRESHOLD, LEVEL, count, len(pairs), uses)


def localized(pairs: localization.Pairs, class_names, *, relative: bool) -> Localization:
    """The hit rates of pivots, in total and by size, span and class.

    Args:
        pairs: from `localization.localize`.
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
