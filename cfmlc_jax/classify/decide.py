"""Thresholds of the classes of a classifier, fitted to its scores on a split."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from cfmlc_jax.classify import deconfound, memory, plan, scoring
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.classify.scoring import Score
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.checks import class_rates
from cfmlc_jax.errors import InputError, WriteError
from cfmlc_jax.metrics import fitted_thresholds
from cfmlc_jax.results import thresholds as files_of_thresholds
from cfmlc_jax.results.predictions import COMBINED, Prediction
from cfmlc_jax.results.scores import Scores, probabilities
from cfmlc_jax.results.split import AVERAGE
from cfmlc_jax.results.thresholds import FIXED, Thresholds

_LISTED = 5  # classes in a line about fallbacks


def matches(config, thresholds: Thresholds) -> bool:
    """Whether thresholds are by the rule of a configuration, with its precision."""
    return thresholds.rule == config.evaluate.thresholds and thresholds.precision == _precision(config)


def fit(
    config,
    parts: Parts,
    score: Score,
    model: dict,
    source: Source,
    *,
    rates: np.ndarray | None,
    poll: Callable[[], None] = lambda: None,
) -> Thresholds:
    """The thresholds of both sets of weights and every prediction, by `config.evaluate.thresholds`.

    All processes score; all of them get the same thresholds.

    Args:
        config: of the classifier.
        parts: its parts.
        score: with the counterfactuals of `config.effect.kinds`, whose effects have thresholds too.
        model: {"variables", "average", "mean_colour"}.
        source: split `config.data.val_split`.
        rates: share [k] of the training images that have each class, for the rule "rate".
        poll: called before every batch; raises if the process must end.
    """
    need = functools.partial(plan.scoring_memory, config, parts, score)
    with memory.needed_for("evaluation", config, "evaluate", need):
        scores, source = scoring.score_readable(
            parts,
            score,
            deconfound.with_tau_norm(model, config.model.dot_product.tau_norm),
            source,
            batch_size=config.evaluate.batch_size,
            poll=poll,
            attention=False,
        )
    return fitted(config, scores, source.class_names, rates)


def after_training(
    config, parts: Parts, score: Score, model: dict, sources: Mapping[str, Source], poll: Callable[[], None]
) -> Thresholds | None:
    """The thresholds of a trained model, as in `fit`; None if the configuration asks for none.

    Args:
        config: of the run.
        parts: of the classifier.
        score: as in `fit`.
        model: of the checkpoint that is evaluated.
        sources: by split; "train" and `config.data.val_split` are among them.
        poll: as in `fit`.
    """
    if config.evaluate.thresholds == "fixed":
        return None
    rates = class_rates(sources["train"].labels)
    return fit(config, parts, score, model, sources[config.data.val_split], rates=rates, poll=poll)


def fitted(
    config, scores: Mapping[str, Scores], class_names: Sequence[str], rates: np.ndarray | None
) -> Thresholds:
    """The thresholds by scores of a split, by set of weights; effects have those of `config.effect.alphas`. See `fit`."""
    names, split = list(class_names), config.data.val_split
    fallbacks: dict[str, list[str]] = {}
    values: dict[str, dict[Prediction, list[float]]] = {}
    for weights, scored in scores.items():
        values[weights] = {}
        for prediction, logits in scored.predictions(config.effect.alphas).items():
            chosen, reasons = _chosen(config, probabilities(logits), scored.labels, rates, split)
            values[weights][prediction] = chosen.tolist()
            if (weights, prediction) == (AVERAGE, COMBINED):
                fallbacks = {reason: [names[k] for k in classes] for reason, classes in reasons.items()}
    return Thresholds(
        rule=config.evaluate.thresholds,
        split=split,
        images=len(next(iter(scores.values())).labels),
        class_names=names,
        thresholds=values,
        precision=_precision(config),
        fallbacks=fallbacks,
    )


def _precision(config) -> float | None:
    return config.evaluate.least_precision if config.evaluate.thresholds == "precision" else None


def _chosen(config, probability, labels, rates, split) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Thresholds float32 [k], and the classes that the rule does not cover, by reason."""
    rule, least = config.evaluate.thresholds, config.evaluate.least_precision
    if rule == "fixed":
        return np.full(labels.shape[1], FIXED, np.float32), {}
    if rule == "rate":
        return fitted_thresholds.at_rates(probability, rates), {}
    if rule == "f1":
        thresholds = fitted_thresholds.best_f1(probability, labels)
    else:
        thresholds = fitted_thresholds.at_precision(probability, labels, least)
    without = np.flatnonzero(np.isnan(thresholds))
    thresholds[without] = FIXED
    reasons = {f"no positive image in {split}: {FIXED:g}": without}
    if rule == "precision":
        reasons[f"a precision of {least:g} is not reached on {split}: 1, never reported"] = np.flatnonzero(
            thresholds == 1
        )
    return thresholds, {reason: classes for reason, classes in reasons.items() if len(classes)}


def lines(thresholds: Thresholds) -> list[str]:
    """What a user is told of thresholds: the rule, and the classes that it does not cover."""
    told = [f"thresholds: {thresholds.title}, {thresholds.images} images"]
    for reason, classes in thresholds.fallbacks.items():
        more = f" and {len(classes) - _LISTED} more" if len(classes) > _LISTED else ""
        told.append(
            f"thresholds: {reason} ({len(classes)} of {len(thresholds.class_names)} classes: "
            f"{', '.join(classes[:_LISTED])}{more})"
        )
    return told


def keep(checkpoint: Path, thresholds: Thresholds | None, print_line: Callable[[str], None]) -> None:
    """Write thresholds, if there are any, into the folder of a checkpoint, on the first process, and print them in words.

    A checkpoint that cannot be written is reported, not an error: the thresholds of this evaluation are known.
    """
    if thresholds is None:
        return
    if jax.process_index() == 0:
        try:
            files_of_thresholds.write(checkpoint, thresholds)
        except (WriteError, InputError) as error:
            print_line(f"thresholds are not kept: {error}")
    for line in lines(thresholds):
        print_line(line)
