"""From stored regions to detections and their average precision."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal import effects
from cfmlc_jax.data.regions.lvis import Annotations, Places
from cfmlc_jax.data.regions.records import RegionRecords
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics import detection
from cfmlc_jax.metrics.detection import Detections
from cfmlc_jax.models.heads import box
from cfmlc_jax.regions.system import BACKGROUND, in_float32
from cfmlc_jax.results.predictions import Prediction


@dataclass(frozen=True)
class Selecting:
    """How detections are chosen among the regions of an image (`metrics.detection.detect`)."""

    least: float
    overlap: float
    most: int


@dataclass(frozen=True)
class ScoredSplit:
    """The annotated images and their records, checked to fit together.

    places: int64 [n], position in the annotations of each image of the records.
    """

    annotations: Annotations
    records: RegionRecords
    places: np.ndarray


def scored_split(annotations: Annotations, records: RegionRecords, name: str) -> ScoredSplit:
    """A split to score.

    Args:
        annotations: of the images.
        records: of the same images, in any order.
        name: of the folder of the records, for errors.

    Raises:
        InputError: the categories differ, an image is not annotated, or an annotated image has no record.
    """
    categories = Places([each.id for each in annotations.categories], "category_id", annotations.path)
    for each in records.categories:
        categories.of(each.id, name)
    if [each.id for each in records.categories] != [each.id for each in annotations.categories]:
        raise InputError(
            f"{name} has {len(records.categories)} categories, {annotations.path} {len(annotations.categories)}; write "
            "the records with all categories of the file, in ascending order of their ids"
        )
    images = Places(annotations.image_ids, "image_id", annotations.path)
    places = np.array([images.of(int(number), name) for number in records.image_ids], np.int64)
    missing = np.setdiff1d(np.arange(len(annotations.image_ids)), places)
    if len(missing):
        raise InputError(
            f"{name} has no record of {len(missing):,} of the {len(annotations.image_ids):,} images of {annotations.path}, "
            f"such as {annotations.image_ids[missing[0]]}; write them too: an image without regions has a record of none"
        )
    return ScoredSplit(annotations, records, places)


class Scorer:
    """Probabilities of regions by prediction, from the features of all stages.

    Args:
        heads: of the cascade.
        predictions: "whole", the factual probabilities, and effects against the mean feature.
        exempt_background: whether effects leave the background's probability as it is.
        second_softmax: see `box.average_stages`.
        batch_size: regions at once, over all devices.
        mesh: the devices.
    """

    def __init__(
        self,
        heads: box.Cascade,
        predictions: Sequence[Prediction],
        *,
        exempt_background: bool,
        second_softmax: bool,
        batch_size: int,
        mesh: jax.sharding.Mesh,
    ):
        self.predictions, self.batch_size = tuple(predictions), batch_size
        self._mesh = mesh
        alphas = [prediction.alpha or 0.0 for prediction in predictions]

        def probabilities(variables, features):
            outputs: Any = heads.apply(variables, in_float32(features))
            return jnp.stack(
                [
                    box.average_stages(
                        [probability(output, alpha, exempt_background) for output in outputs],
                        second_softmax=second_softmax,
                    )
                    for alpha in alphas
                ]
            )

        self.jitted = jax.jit(
            probabilities,
            out_shardings=meshes.replicated(mesh),
            compiler_options=meshes.compiler_options(mesh),
        )

    def __call__(self, variables, features) -> np.ndarray:
        """Probabilities of the classes, without the background: [r, s, …] -> float32 [predictions, r, k]."""
        number = len(features)
        process, processes = jax.process_index(), jax.process_count()
        parts = []
        for start in range(0, number, self.batch_size):
            part = features[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(part)), *[(0, 0)] * (part.ndim - 1)]
            own = np.split(np.pad(part, padding), processes)[process]
            scores = self.jitted(variables, meshes.to_devices(own, self._mesh))
            parts.append(np.asarray(scores)[:, : len(part), :-1])
        return np.concatenate(parts, axis=1)


def probability(output: box.BoxOutputs, alpha: float, exempt_background: bool):
    """Probabilities of a stage, [r, k + 1]; alpha 0 gives the factual ones."""
    if output.counterfactual is None or not alpha:
        return jax.nn.softmax(output.factual, axis=-1)
    if exempt_background:
        return box.background_exempt(
            output.factual, output.counterfactual, alpha=alpha, background=BACKGROUND
        )
    effect = effects.total_direct_effect(output.factual, output.counterfactual, alpha)
    return jax.nn.softmax(effect, axis=-1)


def detections(
    score: Scorer, variables, split: ScoredSplit, selecting: Selecting, poll: Callable[[], None]
) -> dict[Prediction, Detections]:
    """The detections on a split by prediction.

    Args:
        score: of regions.
        variables: of the heads.
        split: its images.
        selecting: how detections are chosen.
        poll: called between batches; raises if the process must end.
    """
    chosen: dict[Prediction, list[tuple]] = {prediction: [] for prediction in score.predictions}
    for image, boxes, scores in _scored_images(score, variables, split.records, poll):
        for prediction, own in zip(score.predictions, scores):
            regions, classes = detection.detect(
                own, boxes, least=selecting.least, overlap=selecting.overlap, most=selecting.most
            )
            place = np.full(len(regions), split.places[image], np.int64)
            chosen[prediction].append(
                (place, classes, own[regions, classes], detection.sides(boxes[regions]))
            )
    return {
        prediction: Detections(*(np.concatenate(column) for column in zip(*parts)))
        for prediction, parts in chosen.items()
    }


def _scored_images(score: Scorer, variables, records: RegionRecords, poll) -> Iterator[tuple[int, Any, Any]]:
    """Image, boxes [r, 4] and scores [predictions, r, k] of all images with regions."""
    for images in _groups(records.counts, score.batch_size):
        poll()
        stored = [records[image] for image in images]
        scores = score(variables, np.concatenate([each.features for each in stored]))
        borders = np.cumsum([len(each.boxes) for each in stored])[:-1]
        for image, each, own in zip(images, stored, np.split(scores, borders, axis=1), strict=True):
            yield image, np.asarray(each.boxes), own


def _groups(counts, most) -> Iterator[list[int]]:
    """Consecutive images with at most so many regions together, or one image with more; without those that have none."""
    group: list[int] = []
    size = 0
    for image in np.flatnonzero(counts).tolist():
        if group and size + counts[image] > most:
            yield group
            group, size = [], 0
        group.append(image)
        size += counts[image]
    if group:
        yield group


def precisions(
    found: Mapping[Prediction, Detections], annotations: Annotations, *, most: int
) -> dict[Prediction, np.ndarray]:
    """Average precision by prediction: float64 [10, k] (`metrics.detection.average_precision`).

    Raises:
        InputError: a prediction has no detection.
    """
    for prediction, own in found.items():
        require_detections(own, f"prediction {prediction}", "lower config.evaluate.score_threshold")
    measure = functools.partial(detection.average_precision, annotations.truth, most=most)
    return {prediction: measure(own) for prediction, own in found.items()}


def require_detections(found: Detections, where: str, way_out: str) -> None:
    """Raise if there is no detection.

    Raises:
        InputError: there is none.
    """
    if not len(found):
        raise InputError(f"{where}: no detection, so that there is no average precision; {way_out}")
