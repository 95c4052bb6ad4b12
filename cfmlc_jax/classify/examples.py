"""Example images for the report: those that a classifier predicts best and worst."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cfmlc_jax.causal import patches
from cfmlc_jax.classify.boxes import fractions
from cfmlc_jax.classify.tasks import Task
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.results.evidence import Example, ExampleClass
from cfmlc_jax.results.scores import Scores

EXAMPLES = 3  # of the best images, and of the worst
CLASSES = 3  # for each example
SIDE = 360  # longer side of an example, pixels
SLIMMEST = 60  # minimum of its shorter side


def choose(
    scores: Scores,
    source: Source,
    boxes: Boxes | None,
    *,
    attention: Callable[[np.ndarray], np.ndarray | None],
    exif: bool,
    task: Task,
) -> dict[str, list[Example]]:
    """The examples of a split, {"best": […], "worst": […]}, by the cross-entropy of combined predictions.

    Images without a label are left out. A best example shows its most probable classes, a worst example the
    classes with the largest losses: false negatives and false positives.

    Args:
        scores: of the split.
        source: the split.
        boxes: of the split; None without.
        attention: numbers [m] of images -> attention logits of their patches [m, p, k]; None without patches.
        exif: rotate images upright, as the classifier's transform did.
        task: defines losses and probabilities.
    """
    combined = scores.logits["combined"]
    losses, probabilities = task.image_losses(combined, scores.labels), task.probabilities(combined)
    order = np.argsort(losses, kind="stable")
    order = order[(scores.labels[order] > 0).any(axis=1)]
    # With few images, no image is in both lists.
    count = min(EXAMPLES, len(order) // 2)
    kinds = {
        "best": (order[:count], combined),
        "worst": (order[::-1][:count], task.class_losses(combined, scores.labels)),
    }
    shown = np.concatenate([images for images, _ in kinds.values()])
    logits = attention(shown)
    weights = {} if logits is None else dict(zip(shown.tolist(), np.asarray(patches.patch_weights(logits))))
    examples = _Examples(scores, source, boxes, weights, exif)
    return {
        kind: [
            examples.example(
                int(i), loss=losses[i], probabilities=probabilities[i], class_order=class_order[i]
            )
            for i in images
        ]
        for kind, (images, class_order) in kinds.items()
    }


def scaled(image: Image.Image) -> Image.Image:
    """The image at the size of an example: its longer side is `SIDE`, the other at least `SLIMMEST` pixels."""
    factor = SIDE / max(image.size)
    size = (max(SLIMMEST, round(image.width * factor)), max(SLIMMEST, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


@dataclass(frozen=True)
class _Examples:
    """Makes examples of the images of a split."""

    scores: Scores
    source: Source
    boxes: Boxes | None
    weights: dict[int, np.ndarray]
    exif: bool

    def example(self, index: int, *, loss, probabilities, class_order) -> Example:
        """The example of an image, with its first classes by descending `class_order` [k]."""
        record = self.source[index]
        image = scaled(decode(record["image"], record.get("where", record["id"]), exif=self.exif))
        classes = np.argsort(-class_order, kind="stable")
        classes = classes[self.scores.labels[index, classes] >= 0][:CLASSES].tolist()
        return Example(
            id=str(record["id"]),
            loss=float(loss),
            labels=np.flatnonzero(self.scores.labels[index] > 0).tolist(),
            width=image.width,
            height=image.height,
            jpeg=jpeg(image, quality=82),
            classes=[self._example_class(index, k, probabilities[k]) for k in classes],
        )

    def _example_class(self, index, k, probability):
        scores = self.scores
        combined = scores.logits["combined"][index, k]
        counterfactuals = scores.counterfactuals
        null = counterfactuals.get("owner", counterfactuals.get("pivot"))
        return ExampleClass(
            label=k,
            present=bool(scores.labels[index, k] > 0),
            probability=float(probability),
            weights=self.weights[index][:, k].tolist() if index in self.weights else None,
            effect=None if null is None else float(combined - null[index, k]),
            boxes=[] if self.boxes is None else fractions(self.boxes, index, k),
        )


def jpeg(image: Image.Image, *, quality: int) -> str:
    """The image as the base64 text of a JPEG file."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
