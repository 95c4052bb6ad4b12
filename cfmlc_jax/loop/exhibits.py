"""The images that a classifier judges best and worst, ready to be shown."""

import base64
import io

import numpy as np

from cfmlc_jax.causal import patches
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.transforms import decode
from cfmlc_jax.loop.boxes import SplitBoxes
from cfmlc_jax.metrics.scores import Scores, probabilities
from cfmlc_jax.report import overlay
from cfmlc_jax.report.evidence import Exhibit, ShownClass

EXHIBITS = 3  # best and as many worst
CLASSES = overlay.MAX_PANELS  # shown of each


def choose(scores: Scores, source: Source, boxes: SplitBoxes | None, *, exif: bool) -> dict:
    """The exhibits {"best": […], "worst": […]} of a split by the cross-entropy of combined predictions.

    Images without a class are left out. Of the best the most probable classes are shown, of the
    worst those that cost most: missed or wrongly seen.

    Args:
        scores: of the split.
        source: the split.
        boxes: of the split, if it has any.
        exif: turn pictures upright, as they were for the classifier.
    """
    losses = cross_entropy(scores.logits["combined"], scores.labels)
    order = np.argsort(losses.mean(axis=1), kind="stable")
    order = order[scores.labels[order].any(axis=1)]
    # Of few images none is both.
    count = min(EXHIBITS, len(order) // 2)
    kinds = {
        "best": (order[:count], scores.logits["combined"]),
        "worst": (order[::-1][:count], losses),
    }
    return {
        kind: [_exhibit(int(i), scores, source, boxes, losses, by[i], exif) for i in images]
        for kind, (images, by) in kinds.items()
    }


def cross_entropy(logits, labels) -> np.ndarray:
    """Cross-entropy of every cell, nats: two [n, k] -> float64 [n, k]."""
    logits = np.asarray(logits, np.float64)
    return np.logaddexp(0, np.where(np.asarray(labels) > 0, -logits, logits))


def _exhibit(index, scores, source, boxes, losses, rank, exif):
    record = source[index]
    picture = overlay.scaled(decode(record["image"], record.get("where", record["id"]), exif=exif))
    shown = np.argsort(-rank, kind="stable")[:CLASSES].tolist()
    return Exhibit(
        id=str(record["id"]),
        loss=float(losses[index].mean()),
        labels=np.flatnonzero(scores.labels[index]).tolist(),
        width=picture.width,
        height=picture.height,
        jpeg=_jpeg(picture),
        classes=[_shown(index, k, scores, boxes) for k in shown],
    )


def _shown(index, k, scores, boxes):
    combined = scores.logits["combined"][index, k]
    null = scores.logits.get("null_pivot")
    return ShownClass(
        label=k,
        present=bool(scores.labels[index, k]),
        probability=float(probabilities(combined)),
        weights=None
        if scores.attention is None
        else np.asarray(patches.patch_weights(scores.attention[index : index + 1]))[0, :, k].tolist(),
        effect=None if null is None else float(combined - null[index, k]),
        boxes=[] if boxes is None else _fractions(boxes, index, k),
    )


def _fractions(boxes, index, k):
    corners = boxes.corners[index][boxes.classes[index] == k]
    return (np.asarray(corners, np.float64) / np.tile(boxes.sizes[index], 2)).clip(0, 1).tolist()


def _jpeg(picture):
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
