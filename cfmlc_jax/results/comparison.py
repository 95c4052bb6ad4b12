"""Two runs compared on the same images: differences of average precision with paired bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax import metrics
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.metrics.bootstrap import Interval, interval, weighted_average_precision
from cfmlc_jax.results import multi_label
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.read import Run, Split
from cfmlc_jax.results.scores import Scores

# An interval of two runs is of as many resamples as those of one.
SEED = 0
_PERCENT = (-100.0, 100.0)


@dataclass(frozen=True)
class Comparison:
    """The second run against the first on a split.

    split: its name.
    predictions: of the first and of the second run.
    scores: likewise.
    means: by definition of average precision: mAP in percent of the first run, of the second, and the difference
        (second − first) with its interval.
    classes: average precision (sklearn) in percent [k] of the first run, of the second, and the differences with
        their intervals [k].
    resamples: number of resamples.
    """

    split: str
    predictions: tuple[Prediction, Prediction]
    scores: tuple[Scores, Scores]
    means: dict[str, tuple[float, float, Interval]]
    classes: tuple[np.ndarray, np.ndarray, Interval]
    resamples: int


def compare(first: Run, second: Run, predictions: Sequence[Prediction]) -> list[Comparison]:
    """The second run against the first on every split that both were evaluated on.

    Both runs are resampled together, image by image, so an interval is of the difference on the same images.

    Args:
        first: evaluated, multi-label.
        second: likewise, with the same classes.
        predictions: of the first and of the second run.

    Raises:
        InputError: a run was not evaluated or is single-label; the classes, or the images of a split, differ; no split
            is common; or a run lacks the prediction.
    """
    _require_comparable(first, second)
    by_name = {split.name: split for split in second.splits}
    common = [(split, by_name[split.name]) for split in first.splits if split.name in by_name]
    if not common:
        names = [", ".join(split.name for split in run.splits) for run in (first, second)]
        raise InputError(
            f"no split of {_shown(first)} ({names[0]}) is one of {_shown(second)} ({names[1]}); evaluate both on the same one"
        )
    for split, other in common:
        _require_same_images(first, second, split, other)
    return [_compared(first, second, pair, predictions) for pair in common]


def _compared(first, second, pair: tuple[Split, Split], predictions) -> Comparison:
    for run, split, prediction in zip((first, second), pair, predictions):
        if prediction not in split.logits:
            raise InputError(
                f"{_shown(run)} has no prediction {prediction.name!r} on {split.name}; it has "
                f"{', '.join(each.name for each in split.predictions)}"
            )
    logits = [split.logits[prediction] for split, prediction in zip(pair, predictions)]
    labels = pair[0].scores.labels
    resamples = multi_label.resamples(pair[0].scores)
    means = {}
    for definition in metrics.AP_DEFINITIONS:
        one, other = (metrics.mean_average_precision(each, labels, definition) for each in logits)
        differences = _differences(logits, labels, definition, resamples, mean=True)
        means[definition] = one, other, differences
    precisions = [100 * metrics.average_precision(each, labels, "sklearn") for each in logits]
    without = ~(labels > 0).any(axis=0)
    for each in precisions:
        each[without] = np.nan
    differences = _differences(logits, labels, "sklearn", resamples, mean=False)
    return Comparison(
        split=pair[0].name,
        predictions=(predictions[0], predictions[1]),
        scores=(pair[0].scores, pair[1].scores),
        means=means,
        classes=(
            precisions[0],
            precisions[1],
            Interval(*(np.where(without, np.nan, each) for each in differences)),
        ),
        resamples=resamples,
    )


def _differences(logits, labels, definition, resamples, *, mean) -> Interval:
    one, other = (weighted_average_precision(each, labels, definition) for each in logits)

    def statistic(weights):
        before, after = 100 * one(weights), 100 * other(weights)
        if not mean:
            return after - before
        # "voc" leaves out classes without positives, which are the same in both.
        return np.nanmean(after, axis=1) - np.nanmean(before, axis=1)

    return interval(
        statistic,
        len(labels),
        generator=np.random.default_rng(SEED),
        resamples=resamples,
        level=multi_label.LEVEL,
        bounds=_PERCENT,
    )


def _require_comparable(first, second):
    for run in (first, second):
        if not run.splits or run.evidence is None:
            raise InputError(
                f"{_shown(run)} has not been evaluated; python -m cfmlc_jax.main --mode=evaluate --workdir=…"
            )
        if run.single_label:
            raise InputError(f"{_shown(run)} is a single-label run; only multi-label runs are compared")
    one, other = (run.evidence.class_names for run in (first, second))
    if one != other:
        place = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
        names = [printable(repr(each[place])) if place < len(each) else "none" for each in (one, other)]
        raise InputError(
            f"{_shown(first)} and {_shown(second)} have different classes: {len(one)} and {len(other)}, class {place} is "
            f"{names[0]} and {names[1]}; compare runs on the same classes"
        )


def _require_same_images(first, second, split: Split, other: Split):
    sizes = [len(each.scores.labels) for each in (split, other)]
    digests = [run.evidence.images.get(split.name) for run in (first, second)]
    if sizes[0] != sizes[1]:
        reason = f"{sizes[0]} and {sizes[1]} images"
    elif not np.array_equal(split.scores.labels, other.scores.labels):
        reason = "images with different labels"
    elif None not in digests and digests[0] != digests[1]:
        reason = "different images"
    else:
        return
    raise InputError(
        f"{_shown(first)} and {_shown(second)} were evaluated on different data: split {split.name} has {reason}; "
        "evaluate both on the same data"
    )


def _shown(run: Run) -> str:
    return printable(run.name)
