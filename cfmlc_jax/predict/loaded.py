"""A checkpoint in Python: `cfmlc_jax.load`, and what its classifier predicts of images."""

import contextlib
import difflib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import files
from cfmlc_jax.classify.predictor import Predictor
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.predict import photos
from cfmlc_jax.predict.photos import Photo
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.split import WEIGHTS
from cfmlc_jax.results.thresholds import FIXED

# A path, a file's bytes, a Pillow image, or pixels uint8 [h, w], [h, w, 3] or [h, w, 4].
AnyImage = str | os.PathLike | bytes | Image.Image | np.ndarray
# One for all classes, one by the name of each class, or k in the order of the classes.
Thresholds = float | Mapping[str, float] | Sequence[float] | np.ndarray
Box = tuple[float, float, float, float]
ON_ERROR = ("raise", "none")


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
    effects: float32 [k], the direct effect of each class: what its logit loses without the pivot patch, or with a
        null image where patches cannot be removed; None unless `load` was asked for effects.
    thresholds: float32 [k], of the classifier (`LoadedClassifier`).
    """

    class_names: tuple[str, ...]
    logits: np.ndarray
    probabilities: np.ndarray
    patch_weights: np.ndarray | None
    boxes: np.ndarray | None
    effects: np.ndarray | None = None
    thresholds: np.ndarray | None = None

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes, best first: (name, probability)."""
        order = np.argsort(-self.logits, kind="stable")[:count]
        return [(self.class_names[k], float(self.probabilities[k])) for k in order]

    def present(self, threshold: Thresholds | None = None) -> list[tuple[str, float]]:
        """The classes more probable than their threshold, best first: (name, probability).

        Args:
            threshold: None: each class's own of the classifier, or 0.5 where it has none; one for all classes; k of
                them in the order of the classes; or by name, where the other classes keep their own.

        Raises:
            InputError: an unknown class, another number of thresholds, or one outside 0 to 1.
        """
        own = np.full(len(self.class_names), FIXED) if self.thresholds is None else self.thresholds
        above = own if threshold is None else _thresholds(threshold, self.class_names, own)
        order = np.argsort(-self.logits, kind="stable")
        present = [k for k in order if float(self.probabilities[k]) > above[k]]
        return [(self.class_names[k], float(self.probabilities[k])) for k in present]

    def pivot(self, name: str) -> Pivot | None:
        """The patch with most of a class's evidence; None without patches.

        Raises:
            InputError: no such class.
        """
        _require_class(name, self.class_names)
        if self.patch_weights is None or self.boxes is None:
            return None
        weights = self.patch_weights[:, self.class_names.index(name)]
        left, top, right, bottom = self.boxes[weights.argmax()].tolist()
        return Pivot((left, top, right, bottom), float(weights.max()))


def _require_class(name, class_names):
    if name not in class_names:
        near = difflib.get_close_matches(str(name), class_names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{name!r} is not one of the {len(class_names)} classes{hint}")


def _thresholds(threshold, class_names, own) -> np.ndarray:
    """The threshold of each class, [k].

    Raises:
        InputError: as `ImagePrediction.present`.
    """
    if isinstance(threshold, Mapping):
        for name in threshold:
            _require_class(name, class_names)
        threshold = [threshold.get(name, before) for name, before in zip(class_names, own)]
    try:
        values = np.asarray(threshold, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"threshold {threshold!r} is not a number; give one, one for each class, or a dict by class name"
        ) from error
    if values.shape not in ((), (len(class_names),)):
        raise InputError(
            f"threshold has the shape {list(values.shape)}; give one number, {len(class_names)} (one for each class), or a "
            "dict by class name"
        )
    if not ((values >= 0) & (values <= 1)).all():  # also of NaN
        raise InputError(f"threshold {threshold!r} is not a probability from 0 to 1")
    return np.broadcast_to(values, len(class_names))


def load(
    path: str | os.PathLike,
    *,
    weights: str = "average",
    prediction: str = "combined",
    effects: bool = False,
    batch_size: int = 16,
) -> "LoadedClassifier":
    """The classifier of a checkpoint, which brings its configuration and class names along.

    Args:
        path: a run, for its best checkpoint; one checkpoint; or a folder of `python -m cfmlc_jax.export`.
        weights: "average" (their moving average) or "weights" (of the last step).
        prediction: as --prediction of `python -m cfmlc_jax.predict`: "combined", "whole", "patch", "tde_whole_0.5", …
        effects: also compute the direct effect of each class, which takes a forward pass for each patch.
        batch_size: images that are computed at once, rounded up to a multiple of the devices. Fewer images take as
            long; with 1, a single image is fastest.

    Raises:
        InputError: no checkpoint there, one that cannot be read, or one without that prediction or effects.
    """
    _require_choice("weights", weights, WEIGHTS)
    try:
        chosen = Prediction.parse(prediction)
    except ValueError as error:
        raise InputError(f"prediction: {error}") from error
    predictor = Predictor(
        checkpoints.find(files.path_of(path)),
        weights=weights,
        prediction=chosen,
        with_effect=effects,
        batch_size=batch_size,
    )
    return LoadedClassifier(predictor, with_effects=effects)


def _require_choice(argument, value, choices):
    if value not in choices:
        raise InputError(f"{argument} {value!r} is not one of {', '.join(choices)}")


class LoadedClassifier:
    """A classifier that predicts images; `load` makes it. JAX's default devices compute, compiled at the first call.

    Attributes:
        class_names: the k classes.
        thresholds: float32 [k], above which a class is present: fitted to the checkpoint's prediction, else 0.5; None
            for the single-label task.
    """

    def __init__(self, predictor: Predictor, *, with_effects: bool = False):
        self.thresholds = predictor.thresholds
        self.class_names = predictor.class_names
        self._predictor, self._with_effects = predictor, with_effects

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.class_names)} classes)"

    @overload
    def predict(
        self, images: AnyImage | Iterable[AnyImage], *, on_error: Literal["raise"] = "raise"
    ) -> list[ImagePrediction]: ...

    @overload
    def predict(
        self, images: AnyImage | Iterable[AnyImage], *, on_error: str
    ) -> list[ImagePrediction | None]: ...

    def predict(self, images, *, on_error="raise"):
        """What is predicted of each image, in their order; of one image a list of one.

        Images may have any size and colour mode, and are turned upright by their EXIF orientation.

        Args:
            images: paths, bytes of files, Pillow images or pixels uint8 [h, w, 3]; one or several.
            on_error: of an image that cannot be read: "raise", or "none" for None in its place, with a warning that
                names it.

        Raises:
            InputError: an image that cannot be read, by its path or its place ("images[2]").
            RunError: logits that are not finite, or too little memory.
        """
        _require_choice("on_error", on_error, ON_ERROR)
        predictions: dict[int, ImagePrediction] = {}
        images = _listed(images)
        for places, batch in self._batches(images, on_error):
            predictions |= zip(places, self._predict(batch))
        return [predictions.get(place) for place in range(len(images))]

    def features(self, images: AnyImage | Iterable[AnyImage], name: str = "pooled") -> np.ndarray:
        """What the backbone makes of each whole image: float32 [n, d], or maps [n, h, w, d].

        Args:
            images: as for `predict`.
            name: "pooled", "map" (the last map), or an earlier map of the backbone, such as "layer2" of a ResNet.

        Raises:
            InputError: an image that cannot be read, or no such features.
        """
        batches = self._batches(_listed(images), "raise")
        rows = [
            self._predictor.features(np.stack([photo.views for photo in batch]), name) for _, batch in batches
        ]
        return np.concatenate(rows) if rows else self._predictor.no_features(name)

    def _batches(self, images, on_error) -> Iterator[tuple[list[int], list[Photo]]]:
        """(places among the images, photos) of each batch."""
        names, contents = _named(images)
        places: list[int] = []
        batch: list[Photo] = []
        read = photos.read(
            names,
            self._predictor.to_views,
            contents=contents,
            threads=self._predictor.threads,
            where=printable,
            keep=None,
        )
        # An error that is kept keeps the reader, whose threads would end whenever it is collected.
        with contextlib.closing(read):
            for place, photo in enumerate(read):
                if isinstance(photo, InputError):
                    if on_error == "raise":
                        raise photo
                    warnings.warn(str(photo), stacklevel=3)
                    continue
                places.append(place)
                batch.append(photo)
                if len(batch) == self._predictor.batch_size:
                    yield places, batch
                    places, batch = [], []
        if batch:
            yield places, batch

    def _predict(self, batch):
        scores = self._predictor(np.stack([photo.views for photo in batch]))
        for photo, of_image in zip(batch, scores):
            yield ImagePrediction(
                class_names=self.class_names,
                logits=of_image.logits,
                probabilities=of_image.probabilities,
                patch_weights=of_image.weights,
                boxes=None if of_image.weights is None else self._boxes(photo.size),
                effects=of_image.effect if self._with_effects else None,
                thresholds=self.thresholds,
            )

    def _boxes(self, size):
        scale = np.asarray(size, np.float32) / self._predictor.to_views.size
        return np.asarray(self._predictor.patch_boxes, np.float32) * np.tile(scale, 2)


def _listed(images) -> list[AnyImage]:
    """The images as a list, of one image a list of one.

    Raises:
        InputError: neither an image nor several.
    """
    if isinstance(images, AnyImage) and not (isinstance(images, np.ndarray) and images.ndim > 3):
        return [images]
    if not isinstance(images, Iterable):
        raise InputError(f"images is a {type(images).__name__}; give {_GOOD}, or a list of such")
    return list(images)


def _named(images):
    """(a name for every image, what those that are no files hold by name)."""
    names, contents = [], {}
    for i, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            names.append(os.fspath(image))
        elif isinstance(image, AnyImage):
            names.append(f"images[{i}]")
            contents[names[-1]] = image
        else:
            raise InputError(f"images[{i}] is a {type(image).__name__}; give {_GOOD}")
    return names, contents


_GOOD = "a path, bytes, a Pillow image or a NumPy array uint8 [h, w, 3]"
