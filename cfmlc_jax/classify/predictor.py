"""Prediction of images with the classifier of a checkpoint, which holds its configuration and class names."""

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.causal import effects, patches
from cfmlc_jax.classify import deconfound, opening, scoring, tasks
from cfmlc_jax.classify.update import in_unit_range
from cfmlc_jax.engine import memory
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.models import catalogue
from cfmlc_jax.results import thresholds as files_of_thresholds
from cfmlc_jax.results.predictions import HEADS, Prediction, null_name
from cfmlc_jax.results.thresholds import FIXED


@dataclass(frozen=True)
class ImageScores:
    """The prediction for one image.

    logits: float32 [k] of the requested prediction.
    probabilities: float32 [k], the sigmoid of the logits, or their softmax for the single-label task. Large
        logits may give equal probabilities.
    weights: float32 [p, k], the weight of each patch in the evidence of a class; None without patches.
    effect: float32 [k], combined minus counterfactual logits; None if not requested.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    weights: np.ndarray | None
    effect: np.ndarray | None


class Predictor:
    """Predicts with a checkpoint's classifier: views uint8 [n, v, s, s, 3] -> n `ImageScores`.

    Args:
        path: a checkpoint, or the workdir of a run for its best checkpoint.
        weights: "weights" (raw) or "average" (EMA).
        thresholds: a file of thresholds to use instead of the checkpoint's; None: the checkpoint's.
        prediction: the requested prediction.
        with_effect: compute the direct effect even if the prediction does not need it: the effect of the pivot
            patch, or of the whole image if the patches are cells of a map.
        batch_size: images per call, rounded up to a multiple of the devices.

    Attributes:
        thresholds: float32 [k], above which a class is present: fitted to the checkpoint's prediction, else 0.5;
            None for the single-label task, whose most probable class is the prediction.
        decided_by: where the thresholds come from, in words; "" if they are 0.5 because there are none.
        batch_size: the maximal number of images per call; a call with fewer takes as long.
        class_names: the k classes.
        to_views: the checkpoint's transform for evaluation.
        grids: number of patches along one side, for each scale; None without patches.
        single_label: each image has one class, and probabilities sum to 1.
        patch_boxes: boxes of the patches, in pixels of the whole view; None without patches.
        threads: number of threads that the checkpoint's run read images with.

    Raises:
        InputError: the checkpoint cannot be read, or cannot give the requested prediction.
    """

    def __init__(
        self,
        path: Path,
        *,
        weights: str,
        prediction: Prediction,
        with_effect: bool,
        batch_size: int,
        thresholds: Path | None = None,
    ):
        opened = opening.open(path, batch_size=batch_size)
        config, parts = opened.config, opened.parts
        require_prediction(opened, prediction, with_effect=with_effect)
        self.batch_size = config.evaluate.batch_size
        self.class_names = tuple(opened.class_names or (f"class {i}" for i in range(opened.num_classes)))
        self.to_views = parts.transforms["evaluate"]
        self.grids, self.patch_boxes = parts.patching["evaluate"].grids(), parts.boxes()
        self.threads = parts.reading.threads
        self._mesh = parts.mesh
        self.single_label = config.task == "single_label"
        self.thresholds, self.decided_by = _thresholds(opened, thresholds, weights, prediction)
        self._task = tasks.create(
            config, training_labels=None, class_counts=None, num_classes=opened.num_classes
        )
        model = deconfound.with_tau_norm(opened.model, config.model.dot_product.tau_norm)
        self._prediction = prediction
        default = "pivot" if parts.patching["evaluate"].removable else "whole"
        self._counterfactual = prediction.counterfactual or (default if with_effect else None)
        kinds = () if self._counterfactual is None else (self._counterfactual,)
        score = scoring.score_step(config, parts, kinds, attention=np.float32)
        self._model = parts.model
        self._variables = {"weights": model["variables"], "average": model["average"]}[weights]
        with self._memory():
            self._score = score.with_weights(self._variables, model["mean_colour"], self.to_views.size)

    def __call__(self, views: np.ndarray) -> list[ImageScores]:
        """The predictions for n images, n at most `batch_size`.

        Raises:
            RunError: a logit is not finite, or there is not enough memory.
        """
        with self._memory():
            outputs = self._outputs(views)
        logits = self._logits(outputs)
        if not np.isfinite(logits).all():
            raise RunError(
                "the checkpoint gives non-finite logits; use an earlier checkpoint, or the other --weights"
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

    def features(self, views: np.ndarray, name: str) -> np.ndarray:
        """The backbone's features of this name of n whole images, n at most `batch_size`: float32 [n, …].

        Raises:
            InputError: the backbone has no such features.
            RunError: there is not enough memory.
        """
        self._require_features(name)
        with self._memory():
            features = self._features_of(self._variables, self._padded(views[:, :1]), name)
        return np.asarray(features, np.float32)[: len(views)]

    def no_features(self, name: str) -> np.ndarray:
        """Those of no image: float32 [0, …].

        Raises:
            InputError: the backbone has no such features.
        """
        return np.zeros((0, *self._require_features(name)), np.float32)

    def _every_feature(self, variables, views):
        """The features by name, [b, …], of whole views uint8 [b, 1, s, s, 3]."""
        outputs: Any = self._model.apply(variables, in_unit_range(views), train=False)
        return {name: feature[:, 0] for name, feature in outputs.features.items()}

    @functools.cached_property
    def _features_of(self):
        return jax.jit(
            lambda variables, views, name: self._every_feature(variables, views)[name],
            static_argnums=2,
            out_shardings=meshes.batch_sharding(self._mesh),
            compiler_options=meshes.compiler_options(self._mesh),
        )

    @functools.cached_property
    def _feature_shapes(self):
        """The shape of each feature of one image, by name."""
        size = self.to_views.size
        views = jax.ShapeDtypeStruct((1, 1, size, size, 3), np.uint8)
        features = jax.eval_shape(self._every_feature, self._variables, views)
        return {name: feature.shape[1:] for name, feature in features.items()}

    def _require_features(self, name):
        if name not in self._feature_shapes:
            near = difflib.get_close_matches(str(name), self._feature_shapes, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"features {name!r} are not one of {', '.join(self._feature_shapes)}{hint}")
        return self._feature_shapes[name]

    def _memory(self):
        return memory.explained("prediction", f"make --batch_size (now {self.batch_size}) smaller")

    def _outputs(self, views):
        """The arrays of `scoring.Score` by name, for these views."""
        padded = self._score(self._padded(views))
        return {name: np.asarray(rows)[: len(views)] for name, rows in padded.items()}

    def _padded(self, views):
        """The views on the devices, and black ones up to the batch size, so that only one shape is compiled."""
        blank = np.zeros((self.batch_size - len(views), *views.shape[1:]), views.dtype)
        return meshes.to_devices(np.concatenate([views, blank]), self._mesh)

    def _logits(self, outputs):
        if self._prediction.alpha is not None:
            return self._effect(outputs, self._prediction.alpha)
        return outputs[self._prediction.kind]

    def _effect(self, outputs, alpha):
        assert self._counterfactual is not None
        null = outputs[null_name(self._counterfactual)]
        return effects.total_direct_effect(outputs["combined"], null, alpha)


def _thresholds(
    opened: opening.Opened, path: Path | None, weights: str, prediction: Prediction
) -> tuple[np.ndarray | None, str]:
    """The thresholds of a prediction and where they come from; see `Predictor`.

    Raises:
        InputError: the file is damaged, of other classes, or has none for the prediction.
    """
    if opened.config.task == "single_label":
        if path is not None:
            raise InputError(
                f"checkpoint {opened.path} is single-label: its most probable class is the prediction; omit --thresholds"
            )
        return None, ""
    stored = opened.thresholds if path is None else files_of_thresholds.read_file(path, opened.class_names)
    chosen = None if stored is None else stored.of(weights, prediction)
    if path is not None and (chosen is None or len(chosen) != opened.num_classes):
        raise InputError(
            f"{path} has no thresholds of {weights!r} for prediction {prediction.name!r} and "
            f"{opened.num_classes} classes; give --threshold=P"
        )
    if stored is None:
        return np.full(opened.num_classes, FIXED, np.float32), ""
    if chosen is None:
        reason = (
            f"0.5: thresholds were not fitted to {prediction.name!r}; {files_of_thresholds.FIT_AGAIN} "
            f"--prediction={prediction.name}"
        )
        return np.full(opened.num_classes, FIXED, np.float32), reason
    return chosen, stored.title


def require_prediction(opened: opening.Opened, prediction: Prediction, *, with_effect: bool = False) -> None:
    """Raise unless a checkpoint can give the requested prediction.

    Args:
        opened: the checkpoint.
        prediction: the requested one.
        with_effect: the direct effect of the pivot patch is requested, too.

    Raises:
        InputError: names the predictions that it can give.
    """
    path, config, with_patches = opened.path, opened.config, opened.parts.method.predict_patches
    if prediction.kind == "tde_owner" and not (with_patches or config.effect.owners):
        raise InputError(
            f"checkpoint {path} was trained as {config.method!r}, without patches that say who owns a pixel; give "
            "--prediction=combined, whole or tde_whole_0.5"
        )
    if not with_patches and prediction.kind in ("patch", "tde_pivot"):
        raise InputError(
            f"checkpoint {path} was trained as {config.method!r}, without patches; give --prediction=combined, whole or "
            "tde_whole_0.5"
        )
    if not with_patches and with_effect:
        raise InputError(
            f"checkpoint {path} was trained as {config.method!r}, without patches whose effect could be shown; omit "
            "--overlay (in Python: effects)"
        )
    if configs.patch_map(config) and prediction.kind == "tde_pivot":
        raise InputError(
            f"the patches of checkpoint {path} are cells of a map, which cannot be removed from the image; "
            "give --prediction=combined, whole, patch, tde_owner_0.5 or tde_whole_0.5"
        )
    if prediction.kind in HEADS and config.method != "invariant":
        raise InputError(
            f"checkpoint {path} was trained as {config.method!r}, without a head for each mechanism; give "
            "--prediction=combined, whole or tde_whole_0.5"
        )
    if prediction.kind == "tde_feature" and not catalogue.HEADS[config.model.head].has_mean:
        raise InputError(
            f"checkpoint {path} has the head {config.model.head!r}, without a mean feature; give "
            "--prediction=combined, whole or tde_whole_0.5"
        )
