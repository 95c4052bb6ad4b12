"""A checkpoint ready to predict images: it brings its configuration and class names along."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.causal import effects, patches
from cfmlc_jax.classify import deconfound, opening, scoring, tasks
from cfmlc_jax.engine import memory
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.models import catalogue
from cfmlc_jax.results.predictions import Prediction, null_name


@dataclass(frozen=True)
class ImageScores:
    """What a classifier predicts of an image.

    logits: float32 [k] of the prediction that was asked for.
    probabilities: float32 [k], their sigmoid, or softmax of single-label checkpoints; large logits tie
        here.
    weights: float32 [p, k], every patch's share in a class's evidence; None without patches.
    effect: float32 [k], combined logits less the counterfactual ones; None if not asked for.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray | None
    effect: np.ndarray | None


class Predictor:
    """The classifier of a checkpoint: views uint8 [n, v, s, s, 3] -> n `ImageScores`.

    Args:
        path: a checkpoint, or a run for its best.
        weights: "weights" (of the last step) or "average".
        prediction: that is asked for.
        with_effect: compute the direct effect for other predictions too: that of the pivot patch, or
            of the whole image where the patches are cells of a map.
        batch_size: images a call, rounded up to a multiple of the devices.

    Attributes:
        batch_size: the most images a call takes; for fewer it is as slow.
        class_names: the k classes.
        to_views: the transform of the checkpoint's evaluation.
        grids: patches along one side, for each scale; None without patches.
        single_label: an image is of one class, and probabilities sum to 1.
        cells: boxes of the patches in a whole view, pixels; None without patches.
        threads: that the checkpoint's run read images with.

    Raises:
        InputError: a checkpoint that cannot be read, or one without the patches that are asked for.
    """

    def __init__(
        self, path: Path, *, weights: str, prediction: Prediction, with_effect: bool, batch_size: int
    ):
        opened = opening.open(path, batch_size=batch_size)
        config, parts = opened.config, opened.parts
        _require_predicted(opened.path, config, prediction, parts.method.predict_patches, with_effect)
        self.batch_size = config.evaluate.batch_size
        self.class_names = tuple(opened.class_names or (f"class {i}" for i in range(opened.num_classes)))
        self.to_views = parts.transforms["evaluate"]
        self.grids, self.cells = parts.patching["evaluate"].grids(), parts.boxes()
        self.threads = parts.reading.threads
        self._mesh = parts.mesh
        self.single_label = config.task == "single_label"
        self._task = tasks.create(
            config, training_labels=None, class_counts=None, num_classes=opened.num_classes
        )
        model = deconfound.with_tau_norm(opened.model, config.model.dot_product.tau_norm)
        self._variables = {"weights": model["variables"], "average": model["average"]}[weights]
        self._mean_colour = model["mean_colour"]
        self._prediction = prediction
        own = "pivot" if parts.patching["evaluate"].removable else "whole"
        self._counterfactual = prediction.counterfactual or (own if with_effect else None)
        kinds = () if self._counterfactual is None else (self._counterfactual,)
        self._score = scoring.score_step(config, parts, kinds)

    def __call__(self, views: np.ndarray) -> list[ImageScores]:
        """What it predicts of each of up to `batch_size` images.

        Raises:
            RunError: logits that are not finite, or too little memory.
        """
        with memory.enough("prediction", f"make --batch_size (now {self.batch_size}) smaller"):
            outputs = self._outputs(views)
        logits = self._logits(outputs)
        if not np.isfinite(logits).all():
            raise RunError(
                "the checkpoint gives logits that are not finite; take an earlier one, or the other --weights"
            )
        rows = zip(
            logits,
            self._task.probabilities(logits),
            np.asarray(patches.patch_weights(outputs["attention"]))
            if "attention" in outputs
            else [None] * len(views),
            [None] * len(views) if self._counterfactual is None else self._effect(outputs, 1.0),
        )
        return [ImageScores(*row) for row in rows]

    def _outputs(self, views):
        """Arrays by name of the score step, of these views alone."""
        # One shape to compile for: what is missing is black.
        blank = np.zeros((self.batch_size - len(views), *views.shape[1:]), views.dtype)
        on_devices = meshes.to_devices(np.concatenate([views, blank]), self._mesh)
        padded = self._score(self._variables, self._mean_colour, on_devices)
        return {name: np.asarray(rows)[: len(views)] for name, rows in padded.items()}

    def _logits(self, outputs):
        if self._prediction.alpha is not None:
            return self._effect(outputs, self._prediction.alpha)
        return outputs[self._prediction.kind]

    def _effect(self, outputs, alpha):
        assert self._counterfactual is not None
        null = outputs[null_name(self._counterfactual)]
        return effects.total_direct_effect(outputs["combined"], null, alpha)


def _require_predicted(path, config, prediction: Prediction, with_patches: bool, with_effect: bool):
    """Raise unless the checkpoint gives the prediction.

    Raises:
        InputError: with those that it gives.
    """
    if not with_patches and (with_effect or prediction.kind in ("patch", "tde_pivot")):
        raise InputError(
            f"checkpoint {path} was trained as {config.method!r}, without patches; leave --overlay out "
            "and give --prediction=combined, whole or tde_whole"
        )
    if configs.patch_map(config) and prediction.kind == "tde_pivot":
        raise InputError(
            f"checkpoint {path} scores cells of a map, which cannot be taken out of the image; "
            "give --prediction=combined, whole, patch or tde_whole"
        )
    if prediction.kind == "tde_feature" and not catalogue.HEADS[config.model.head].has_mean:
        raise InputError(
            f"checkpoint {path} has the head {config.model.head!r}, without a mean feature; give "
            "--prediction=combined, whole or tde_whole"
        )
