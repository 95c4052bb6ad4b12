"""Measurements of an ablation: costs of compiled programs, weights of patches, estimated against true effects."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.classify import build, opening, scoring, true_effects
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.engine.flops import count
from cfmlc_jax.engine.state import plan
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.agreement import agreement
from cfmlc_jax.results import multi_label, read
from cfmlc_jax.results.multi_label import MultiLabelResults
from cfmlc_jax.results.predictions import COMBINED, Prediction
from cfmlc_jax.results.scores import Scores, probabilities, summarise
from scripts.ablation.tables import ACCURACY

NULLS = ("zeros", "mean", "blur")
EFFECT_SPLITS = ("test_balanced", "test_conflict")
TIMED = 10  # runs of the compiled prediction; the fastest counts


def training_gflops(path: Path, config) -> float:
    """10⁹ floating-point operations of a complete training, as compiled; measured once and stored in a file."""
    return _kept(path, _without_seed(config), lambda: {"train_gflops": _training_gflops(config)})[
        "train_gflops"
    ]


def prediction_costs(path: Path, config) -> dict[str, dict[str, float]]:
    """Costs of compiled predictions: "mflops" (10⁶ operations per image) and "images_per_second".

    Both are measured for factual predictions and with each kind of counterfactual, on one batch on the
    device; once for all seeds, and stored in a file.
    """
    return _kept(path, _without_seed(config), lambda: _prediction_costs(config))


def _without_seed(config) -> dict[str, Any]:
    return configs.to_json(config) | {"seed": None}


def _kept(path: Path, settings: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` returns, stored in a file of its own for these settings: path_DIGEST.json."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    file = path.with_stem(f"{path.stem}_{digest}")
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        files.write_text(file, json.dumps(measure()) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def _training_gflops(config) -> float:
    source = data.source(config.data, "train")
    generated = build.open_counterfactuals(config, source, lambda line: None)
    steps = build.steps_per_epoch(config, source, generated)
    removal = config.train.removal
    if not removal.rate:
        return _step_flops(config, source) * steps * config.train.epochs / 1e9
    plain = configs.from_json(configs.to_json(config))
    plain.train.removal.rate = plain.train.removal.exchange = 0.0
    before = removal.from_epoch - 1
    with_removals = config.train.epochs - before
    flops = before * _step_flops(plain, source) + with_removals * _step_flops(config, source)
    return flops * steps / 1e9


def _step_flops(config, source) -> float:
    """Floating-point operations of one training step."""
    parts = build.create(config, len(source.class_names))
    system = build.system(
        config, parts, steps_per_epoch=1000, class_counts=source.labels.sum(axis=0), validation=None
    )
    _, abstract = plan(system, seed=config.seed, mesh=parts.mesh)
    train_step = TrainStep(
        system, abstract, seed=config.seed, log_every=config.train.log_every, mesh=parts.mesh
    )
    images, classes = config.train.batch_size, len(source.class_names)
    batch = {
        "views": jax.ShapeDtypeStruct((images, *parts.sample_shape("train")[1:]), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((images, classes), jnp.float32),
    }
    return train_step.flops(abstract, batch)


def _prediction_costs(config) -> dict[str, dict[str, float]]:
    parts = build.create(config, len(data.source(config.data, "train").class_names))
    model = build.initial(config, parts)
    costs: dict[str, dict[str, float]] = {"mflops": {}, "images_per_second": {}}
    for work in ("factual", *config.effect.kinds):
        score = scoring.score_step(config, parts, () if work == "factual" else (work,))
        flops, rate = _prediction_cost(score, model, config.evaluate.batch_size, parts)
        costs["mflops"][work], costs["images_per_second"][work] = flops / 1e6, rate
    return costs


def _prediction_cost(score, model, images, parts) -> tuple[float, float]:
    """Operations per predicted image, and images per second on a batch on the device."""
    views = jnp.zeros((images, *parts.sample_shape("evaluate")[1:]), jnp.uint8)
    arguments = model["average"], model["mean_colour"], views
    flops = count(score.trace(*arguments).jaxpr) / images
    score_views = score.with_weights(*arguments[:2], views.shape[2])
    jax.block_until_ready(score_views(views))
    seconds = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        jax.block_until_ready(score_views(views))
        seconds.append(time.perf_counter() - begun)
    return flops, images / min(seconds)


def recombined(report: Path, split: str, patch_weight: float) -> dict[str, float]:
    """Accuracy and use of context of (1 − weight)·whole + weight·patch, from a report's saved logits: fields of `Row`.

    The weight of the method's combined prediction is one half.
    """
    with np.load(report / f"scores_{split}_average.npz") as saved:
        mixed = (1 - patch_weight) * saved["whole"] + patch_weight * saved["patch"]
        scores = Scores({"combined": mixed.astype(np.float32)}, saved["labels"])
    measured = summarise(scores, ())[COMBINED]
    row = {name: measured[name] for name in ACCURACY}
    training = read.read_evidence(report).training
    if training is not None and training.pairs:
        context = multi_label.context(scores, (), training.pairs, np.random.default_rng(0))
        use = context.predictions[COMBINED]
        row |= {"excess_fpr": use.excess_fpr.value, "context_auc": use.context_auc.value}
    return row


def multi_label_results(report: Path) -> dict[str, MultiLabelResults]:
    """Results by split, from the folder of a multi-label evaluation."""
    results, _ = read.results(report)
    return {split: own for split, own in results.items() if isinstance(own, MultiLabelResults)}


def effects(folder: Path, config, num_scenes: int, *, checkpoint: Path | None = None) -> list[dict[str, Any]]:
    """Estimated against true effects of objects in scenes without bias, for every null: fields of `EffectRow`.

    Args:
        folder: where the results are stored.
        config: of the evaluation.
        num_scenes: scenes of each split.
        checkpoint: the run that is evaluated; None: that of the folder.
    """
    settings = {"config": configs.to_json(config), "num_scenes": num_scenes}
    return _kept(
        folder / "effects.json",
        settings,
        lambda: _measured_effects(checkpoint or folder, config, num_scenes),
    )


def _measured_effects(folder: Path, config, num_scenes: int) -> list[dict[str, Any]]:
    if config.data.source not in data.SCENES:
        raise InputError(
            f"true effects need scenes ({', '.join(data.SCENES)}), not data.source {config.data.source!r}; "
            "set the run's effects to 0"
        )
    opened = opening.open(folder, config)
    kinds = set(config.effect.kinds)
    of_images = tuple(kind for kind in config.effect.kinds if kind not in scoring.WITHOUT_NULL)
    counterfactuals = [(null, null, of_images) for null in NULLS if of_images]
    others = {"owner": "surroundings", "feature": "mean feature"}
    counterfactuals += [(name, config.effect.null, (kind,)) for kind, name in others.items() if kind in kinds]
    rows = []
    for split in EFFECT_SPLITS:
        scenes = Scenes(split, num_scenes=num_scenes, objects=data.SCENES[config.data.source])
        rows += _effects_of_split(opened, config, scenes, counterfactuals)
    return rows


def _effects_of_split(opened, config, scenes: Scenes, counterfactuals) -> list[dict[str, Any]]:
    """The rows of one split; the first has the score itself as the estimate, which every other has to beat."""
    removals = true_effects.ScenesWithoutOne(scenes)

    def scores(source, config, kinds):
        score = scoring.score_step(config, opened.parts, kinds)
        batch_size = config.evaluate.batch_size
        return scoring.score_split(opened.parts, score, opened.model, source, batch_size=batch_size)[
            "average"
        ]

    without = scores(removals, config, ())
    rows: list[dict[str, Any]] = []
    for name, null, kinds in counterfactuals:
        nulled = configs.replaced(config, {"effect.null": null})
        objects = true_effects.effects(scores(scenes, nulled, kinds), without, removals, config.effect.alphas)
        if not rows:
            rows.append(
                {"split": scenes.split, "null": "none", "prediction": COMBINED.name} | _agreed(objects)
            )
        for prediction in objects.estimated:
            row = {"split": scenes.split, "null": name, "prediction": prediction.name}
            rows.append(row | _agreed(objects, prediction))
    return rows


def _agreed(objects: true_effects.Effects, prediction: Prediction | None = None) -> dict[str, Any]:
    """Agreement of the estimates of a prediction with the true effects; None: of the scores themselves."""
    estimated = objects.factual if prediction is None else objects.estimated[prediction]
    agreed = agreement(estimated, objects.true, generator=np.random.default_rng(0), images=objects.image)
    # In probability: how far it falls where the logit falls by the effect.
    true, estimate = (
        probabilities(objects.factual) - probabilities(objects.factual - effect)
        for effect in (objects.true, estimated)
    )
    in_probability = agreement(estimate, true, generator=np.random.default_rng(0), images=objects.image)
    row = {
        "objects": agreed.effects,
        "pearson": agreed.pearson.value,
        "spearman": agreed.spearman.value,
        "slope": agreed.slope,
        "bias": agreed.bias,
        "mae": agreed.mae,
        "rmse": agreed.rmse,
        "probability_pearson": in_probability.pearson.value,
        "probability_slope": in_probability.slope,
        "probability_mae": in_probability.mae,
        "true": objects.true.round(4).tolist(),
        "estimated": estimated.round(4).tolist(),
    }
    if prediction is not None:
        absent = objects.absent[prediction]
        everything = agreement(
            np.concatenate([estimated, absent]),
            np.concatenate([objects.true, np.zeros_like(absent)]),
            generator=np.random.default_rng(0),
            resamples=1,
        )
        row |= {"all_pearson": everything.pearson.value, "all_slope": everything.slope}
        row["absent_mae"] = float(np.abs(absent).mean())
    return row
