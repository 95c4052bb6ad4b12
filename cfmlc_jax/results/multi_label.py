"""What a report says of one split beyond its plain metrics, as JSON types; all numbers in percent."""

import dataclasses

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.metrics import cooccurrence, localization
from cfmlc_jax.metrics.bootstrap import interval, values_and_gains, weighted_mean_average_precision
from cfmlc_jax.metrics.context_auc import mean_context_auc
from cfmlc_jax.results.scores import Scores, probabilities

LEVEL = 0.95
THRESHOLD = 0.5
# Pairs of classes whose company is measured; more would average over what is hardly learnt.
PAIRS = 20
# Cells of [n, k] above which intervals come from half as many resamples: minutes, not more.
MANY_CELLS = 1_000_000
BASELINE = "whole"


def resamples(scores: Scores) -> int:
    """How many bootstrap resamples a split of this size gets: 200, or 100 where each takes long."""
    return 100 if scores.labels.size > MANY_CELLS else 200


def intervals(scores: Scores, alphas, generator: np.random.Generator) -> dict:
    """Bootstrap intervals over images of each prediction's mAP, and of its gain over `BASELINE`.

    {"level", "resamples", "predictions": {name: {"mAP_sklearn": [low, high], "mAP_voc": …,
    "gain_sklearn": [value, low, high], "gain_voc": …}}}. A gain's interval is that of the difference
    on the same images: it is narrower than the two intervals suggest.

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
    found: dict[str, dict] = {name: {} for name in predictions}
    for definition in metrics.AP_DEFINITIONS:
        statistics = [
            weighted_mean_average_precision(predictions[name], scores.labels, definition) for name in distinct
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
        for name in predictions:
            row = distinct.index(rankings[name])
            gain = [float(part[len(statistics) + row]) for part in both]
            found[name][f"mAP_{definition}"] = [float(both.low[row]), float(both.high[row])]
            found[name][f"gain_{definition}"] = gain
    return {"level": LEVEL, "resamples": count, "predictions": found}


def _rankings(scores: Scores, predictions) -> dict[str, str]:
    """Which prediction's ranking of images each prediction has: its own, mostly.

    An effect whose null is one for all images ranks them as the combined prediction does.
    """
    null = scores.logits.get("null_whole")
    constant = null is not None and bool((null == null[:1]).all())
    return {name: "combined" if constant and name.startswith("tde_whole_") else name for name in predictions}


def company(scores: Scores, alphas, pairs, generator: np.random.Generator) -> dict:
    """How far each prediction leans on company, over pairs of a target and its context.

    {"threshold", "level", "resamples", "pairs", "predictions": {name: {"excess_fpr": [value, low,
    high], "context_auc": [value, low, high], "undefined", "by_pair": [m]}}}. The excess is the mean
    of `cooccurrence.mean_excess_false_positive_rate` in percentage points, by_pair its parts; the
    AUC is free of a threshold, 50 where company is ignored.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        pairs: [m, 2], m at least 1, from the training set.
        generator: of the bootstrap's draws.
    """
    pairs = np.asarray(pairs)
    count, seed = resamples(scores), int(generator.integers(2**63))
    found = {}
    predictions = scores.predictions(alphas)
    rankings = _rankings(scores, predictions)
    aucs: dict[str, list[float]] = {}
    for name, logits in predictions.items():
        chances = probabilities(logits)
        # The same draws for all, so that equal predictions have equal intervals.
        mean = cooccurrence.mean_excess_false_positive_rate(
            chances,
            scores.labels,
            THRESHOLD,
            pairs,
            generator=np.random.default_rng(seed),
            resamples=count,
            level=LEVEL,
        )
        ranking = rankings[name]
        if ranking not in aucs:
            aucs[ranking] = _percent(
                mean_context_auc(
                    predictions[ranking],
                    scores.labels,
                    pairs,
                    generator=np.random.default_rng(seed),
                    resamples=count,
                    level=LEVEL,
                )
            )
        rates = cooccurrence.false_positive_rates(chances, scores.labels, THRESHOLD)
        found[name] = {
            "excess_fpr": _percent(mean.excess),
            "context_auc": aucs[ranking],
            "undefined": mean.undefined,
            "by_pair": _percent(rates.excess[tuple(pairs.T)]),
        }
    return {
        "threshold": THRESHOLD,
        "level": LEVEL,
        "resamples": count,
        "pairs": len(pairs),
        "predictions": found,
    }


def localized(pairs: localization.Pairs, class_names, *, relative: bool) -> dict:
    """Hit rates and shares of the pivots, in all and by size, span and class, in percent.

    {"all": rates, "by_size": {"small": …}, "by_span": {"within": …}, "by_class": {name: rates},
    "relative", "images_without_boxes", "boxes_without_area"}; rates are the fields of
    `localization.Rates`.

    Args:
        pairs: of `localization.localize`.
        class_names: in label order.
        relative: as in `localization.by_size`.
    """
    return {
        "all": _rates(localization.rates(pairs)),
        "by_size": {name: _rates(r) for name, r in localization.by_size(pairs, relative=relative).items()},
        "by_span": {name: _rates(r) for name, r in localization.by_span(pairs).items()},
        "by_class": {
            name: _rates(r)
            for name, r in zip(class_names, localization.by_class(pairs, len(class_names)), strict=True)
        },
        "relative": relative,
        "images_without_boxes": pairs.images_without_boxes,
        "boxes_without_area": pairs.boxes_without_area,
    }


def _rates(rates: localization.Rates) -> dict:
    return {
        name: value if name == "pairs" else 100 * value for name, value in dataclasses.asdict(rates).items()
    }


def _percent(values) -> list[float]:
    return [100 * float(value) for value in values]
