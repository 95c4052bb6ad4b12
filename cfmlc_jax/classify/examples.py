"""The images that a classifier predicts best and worst, ready to be shown."""

import base64
import io

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

EXAMPLES = 3  # best and as many worst
CLASSES = 3  # shown of each
SIDE = 360  # longer side of a shown picture, pixels
SLIMMEST = 60  # its other side; slimmer ones are widened


def choose(
    scores: Scores, source: Source, boxes: Boxes | None, *, exif: bool, task: Task
) -> dict[str, list[Example]]:
    """The examples {"best": […], "worst": […]} of a split by the cross-entropy of combined predictions.

    Images without a class are left out. Of the best the most probable classes are shown, of the
    worst those that cost most: false negatives and false positives.

    Args:
        scores: of the split.
        source: the split.
        boxes: of the split, if it has any.
        exif: turn pictures upright, as they were for the classifier.
        task: what losses and probabilities are.
    """
    combined = scores.logits["combined"]
    losses, chances = task.image_losses(combined, scores.labels), task.probabilities(combined)
    order = np.argsort(losses, kind="stable")
    order = order[scores.labels[order].any(axis=1)]
    # Of few images none is both.
    count = min(EXAMPLES, len(order) // 2)
    kinds = {
        "best": (order[:count], combined),
        "worst": (order[::-1][:count], task.class_losses(combined, scores.labels)),
    }
    return {
        kind: [
            _example(int(i), scores, source, boxes, losses[i], chances[i], order_by[i], exif) for i in images
        ]
        for kind, (images, order_by) in kinds.items()
    }


def scaled(image: Image.Image) -> Image.Image:
    """The image as large as it is shown: its longer side is `SIDE`, the other at least `SLIMMEST`."""
    factor = SIDE / max(image.size)
    size = (max(SLIMMEST, round(image.width * factor)), max(SLIMMEST, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _example(index, scores, source, boxes, loss, chances, rank, exif):
    record = source[index]
    picture = scaled(decode(record["image"], record.get("where", record["id"]), exif=exif))
    shown = np.argsort(-rank, kind="stable")[:CLASSES].tolist()
    return Example(
        id=str(record["id"]),
        loss=float(loss),
        labels=np.flatnonzero(scores.labels[index]).tolist(),
        width=picture.width,
        height=picture.height,
        jpeg=_jpeg(picture),
        classes=[_shown(index, k, scores, boxes, chances[k]) for k in shown],
    )


def _shown(index, k, scores, boxes, chance):
    combined = scores.logits["combined"][index, k]
    null = scores.counterfactuals.get("pivot")
    return ExampleClass(
        label=k,
        present=bool(scores.labels[index, k]),
        probability=float(chance),
        weights=None
        if scores.attention is None
        else np.asarray(patches.patch_weights(scores.attention[index : index + 1]))[0, :, k].tolist(),
        effect=None if null is None else float(combined - null[index, k]),
        boxes=[] if boxes is None else fractions(boxes, index, k),
    )


def _jpeg(picture):
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
