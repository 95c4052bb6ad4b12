"""The full evaluation of a classifier of regions: average precision of all predictions, and the detections as a file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.engine import hooks
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics import detection
from cfmlc_jax.regions import build, scoring
from cfmlc_jax.regions.build import Parts
from cfmlc_jax.regions.files import write_detections
from cfmlc_jax.regions.scoring import ScoredSplit
from cfmlc_jax.results.detection import DETECTIONS, FILE, ClassPrecision, DetectionResults
from cfmlc_jax.results.predictions import WHOLE, effect_of

_FIELDS = (
    "features",
    "stages",
    "shared_layers",
    "hidden",
    "classifier",
    "num_heads",
    "tau",
    "gamma",
    "epsilon",
)


def evaluate_checkpoint(
    path: Path, config, folder: Path, print_line: Callable[[str], None]
) -> DetectionResults:
    """The results of a checkpoint on config.data.val (`full_evaluation`).

    Args:
        path: a checkpoint.
        config: the configuration to evaluate with; None: the checkpoint's own.
        folder: of the report.
        print_line: prints a line for the user.

    Raises:
        InputError: the checkpoint cannot be read, or its model or categories differ from the configuration's or the data's.
    """
    meta = checkpoints.read_meta(path)
    with checkpoints.understanding(path, meta):
        stored = configs.from_json(meta["config"])
    config = stored if config is None else config
    changed = [name for name in _FIELDS if stored.model[name] != config.model[name]]
    if changed:
        raise InputError(
            f"checkpoint {path} has other config.model.{changed[0]} ({stored.model[changed[0]]}) than the configuration "
            f"({config.model[changed[0]]}); set it to the checkpoint's"
        )
    split = build.open_scored(config)
    build.require_same_categories([Category(*each) for each in meta["categories"]], split.records.categories)
    parts = build.create(config, len(split.records.categories))
    variables = checkpoints.read_model(path, build.model_item(config, parts))["variables"]
    preemption = hooks.Preemption()
    return full_evaluation(
        config,
        parts,
        variables,
        split,
        path.name,
        folder,
        print_line,
        lambda: preemption.raise_if_requested(f"checkpoint {path.name} is not evaluated"),
    )


def full_evaluation(
    config,
    parts: Parts,
    variables: Any,
    split: ScoredSplit,
    checkpoint: str,
    folder: Path,
    print_line: Callable[[str], None],
    poll: Callable[[], None],
) -> DetectionResults:
    """The results of variables on a split, which the first process also writes into a folder.

    Args:
        config: validated.
        parts: of the same configuration.
        variables: of the heads.
        split: to score.
        checkpoint: the name of the checkpoint.
        folder: of the report.
        print_line: prints a line for the user.
        poll: called between batches; raises if the process must end.

    Raises:
        InputError: there is no detection.
        WriteError: a file cannot be written.
    """
    alphas = sorted({*config.effect.alphas, config.effect.alpha})
    score = build.scorer(config, parts, alphas)
    found = scoring.detections(score, variables, split, build.selecting(config), poll)
    precision = scoring.precisions(found, split.annotations, most=config.evaluate.most)
    annotations = split.annotations
    frequency = annotations.truth.frequency
    boxes = np.bincount(annotations.truth.classes, minlength=len(frequency)).tolist()
    by_class = {each: 100 * values.mean(axis=0) for each, values in precision.items()}
    results = DetectionResults(
        checkpoint=checkpoint,
        images=len(annotations.image_ids),
        detections={each: len(own) for each, own in found.items()},
        metrics={each: detection.summary(values, frequency) for each, values in precision.items()},
        classes=[
            ClassPrecision(
                category.name,
                category.frequency,
                boxes[i],
                {each: float(values[i]) for each, values in by_class.items()} if boxes[i] else {},
            )
            for i, category in enumerate(annotations.categories)
        ],
    )
    for line in _lines(results):
        print_line(line)
    if jax.process_index() == 0:
        chief = effect_of("feature", config.effect.alpha) if build.has_effect(config) else WHOLE
        write_detections(folder / DETECTIONS, found[chief], annotations)
        files.write_text(folder / FILE, json.dumps(results.to_json(), indent=1) + "\n")
    return results


def _lines(results: DetectionResults) -> Sequence[str]:
    """A table of the metrics, as text."""
    width = max(len(each.title) for each in results.metrics)
    head = " ".join(f"{name:>6}" for name in detection.METRICS)
    lines = [f"{'AP of boxes, %':{width}} {head}"]
    for prediction, values in results.metrics.items():
        numbers = " ".join(
            f"{values[name]:6.2f}" if name in values else f"{'–':>6}" for name in detection.METRICS
        )
        lines.append(f"{prediction.title:{width}} {numbers}")
    return lines
