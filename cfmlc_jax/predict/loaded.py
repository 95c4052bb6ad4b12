"""A checkpoint in Python: `cfmlc_jax.load`, and what its classifier predicts of images."""

import difflib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import files
from cfmlc_jax.classify.predictor import Predictor
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.predict import photos
from cfmlc_jax.predict.photos import Photo
from cfmlc_jax.results.predictions import EFFECTS, KINDS, Prediction
from cfmlc_jax.results.thresholds import FIXED

# A path, a file's bytes, a Pillow image, or pixels uint8 [h, w], [h, w, 3] or [h, w, 4].
AnyImage = str | os.PathLike | bytes | Image.Image | np.ndarray
Box = tuple[float, float, float, float]


class Pivot(NamedTuple):
    """The pivot patch of a class.

    box: left, top, right, bottom in the image, pixels.
    weight: share in the class's evidence, of all patches 1.
    """

    box: Box
    weight: float


@dataclass(frozen=True)
class ImagePrediction:
    """What a classifier predicts of an image.

    class_names: the k classes.
    logits: float32 [k].
    probabilities: float32 [k], their sigmoid, or softmax where the task is single-label.
    patch_weights: float32 [p, k], each patch's share in the evidence of each class; None without patches.
    boxes: float32 [p, 4] of the patches: left, top, right, bottom in the image, pixels; None without patches.
    thresholds: float32 [k], of the classifier (`LoadedClassifier`).
    """

    class_names: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    patch_weights: np.ndarray | None
    boxes: np.ndarray | None
    thresholds: np.ndarray | None = None

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes, best first: (name, probability)."""
        order = np.argsort(-self.logits, kind="stable")[:count]
        return [(self.class_names[k], float(self.probabilities[k])) for k in order]

    def present(self, threshold: float | None = None) -> list[tuple[str, float]]:
        """The classes more probable than a threshold, best first: (name, probability).

        Args:
            threshold: of all classes; None: each class's own of the classifier, or 0.5 where it has none.
        """
        above = np.full(len(self.class_names), FIXED if threshold is None else threshold)
        if threshold is None and self.thresholds is not None:
            above = self.thresholds
        order = np.argsort(-self.logits, kind="stable")
        present = [k for k in order if float(self.probabilities[k]) > above[k]]
        return [(self.class_names[k], float(self.probabilities[k])) for k in present]

    def pivot(self, name: str) -> Pivot | None:
        """The patch with most of a class's evidence; None without patches.

        Raises:
            InputError: no such class.
        """
        if name not in self.class_names:
            near = difflib.get_close_matches(name, self.class_names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{name!r} is not one of the {len(self.class_names)} classes{hint}")
        if self.patch_weights is None or self.boxes is None:
            return None
        weights = self.patch_weights[:, self.class_names.index(name)]
        left, top, right, bottom = self.boxes[weights.argmax()].tolist()
        return Pivot((left, top, right, bottom), float(weights.max()))


def load(
    path: str | os.PathLike,
    *,
    weights: str = "average",
    prediction: str = "combined",
    alpha: float = 0.5,
    batch_size: int = 16,
) -> "LoadedClassifier":
    """The classifier of a checkpoint, which brings its configuration and class names along.

    Args:
        path: a run, for its best checkpoint, or one checkpoint.
        weights: "average" (their moving average) or "weights" (of the last step).
        prediction: as --prediction of `python -m cfmlc_jax.predict`: "combined", "whole", "patch", "tde_whole", …
        alpha: strength of the total direct effect, of predictions that are one.
        batch_size: images that are computed at once, rounded up to a multiple of the devices. Fewer images take as
            long; with 1, a single image is fastest.

    Raises:
        InputError: no checkpoint there, one that cannot be read, or one without that prediction.
    """
    predictor = Predictor(
        checkpoints.find(files.path_of(path)),
        weights=weights,
        prediction=_prediction(prediction, alpha),
        with_effect=False,
        batch_size=batch_size,
    )
    return LoadedClassifier(predictor)


def _prediction(kind: str, alpha: float) -> Prediction:
    if kind not in KINDS:
        raise InputError(f"prediction {kind!r} is not one of {', '.join(KINDS)}")
    return Prediction(kind, alpha if kind in EFFECTS else None)


class LoadedClassifier:
    """A classifier that predicts images; `load` makes it. JAX's default devices compute, compiled at the first call.

    Attributes:
        class_names: the k classes.
        thresholds: float32 [k], above which a class is present: fitted to the checkpoint's prediction, else 0.5; None
            for the single-label task.
    """

    def __init__(self, predictor: Predictor):
        self.thresholds = predictor.thresholds
        self.class_names = predictor.class_names
        self._predictor = predictor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.class_names)} classes)"

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> list[ImagePrediction]:
        """What is predicted of each image, in their order; of one image a list of one.

        Images may have any size and colour mode, and are turned upright by their EXIF orientation.

        Args:
            images: paths, bytes of files, Pillow images or pixels uint8 [h, w, 3]; one or several.

        Raises:
            InputError: an image that cannot be read, by its path or its place ("images[2]").
            RunError: logits that are not finite, or too little memory.
        """
        return [prediction for batch in self._batches(images) for prediction in self._predict(batch)]

    def _batches(self, images) -> Iterator[list[Photo]]:
        names, contents = _named(images)
        batch = []
        for photo in photos.read(
            names,
            self._predictor.to_views,
            contents=contents,
            threads=self._predictor.threads,
            where=printable,
            keep=None,
        ):
            if isinstance(photo, InputError):
                raise photo
            batch.append(photo)
            if len(batch) == self._predictor.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _predict(self, batch):
        scores = self._predictor(np.stack([photo.views for photo in batch]))
        for photo, of_image in zip(batch, scores):
            yield ImagePrediction(
                class_names=self.class_names,
                logits=of_image.logits,
                probabilities=of_image.probabilities,
                patch_weights=of_image.weights,
                boxes=None if of_image.weights is None else self._boxes(photo.size),
                thresholds=self.thresholds,
            )

    def _boxes(self, size):
        scale = np.asarray(size, np.float32) / self._predictor.to_views.size
        return np.asarray(self._predictor.patch_boxes, np.float32) * np.tile(scale, 2)


def _named(images):
    """(a name for every image, what those that are no files hold by name)."""
    if isinstance(images, AnyImage) and not (isinstance(images, np.ndarray) and images.ndim > 3):
        images = [images]
    names, contents = [], {}
    for i, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            names.append(os.fspath(image))
        elif isinstance(image, AnyImage):
            names.append(f"images[{i}]")
            contents[names[-1]] = image
        else:
            raise InputError(
                f"images[{i}] is a {type(image).__name__}; give a path, bytes, a Pillow image or an array uint8 [h, w, 3]"
            )
    return names, contents
