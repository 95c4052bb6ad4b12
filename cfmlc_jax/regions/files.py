"""Detections in the form of results that LVIS' own program reads: a JSON list of image_id, category_id, bbox and score."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.data.regions.lvis import Annotations, Places
from cfmlc_jax.data.sources import boxes, fields
from cfmlc_jax.data.sources.files import read_json
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.detection import Detections

_LARGEST = sys.float_info.max
_WAY_OUT = "give a JSON list of objects with image_id, category_id, bbox and score"


def write_detections(path: Path, found: Detections, annotations: Annotations) -> None:
    """Write detections to a file.

    Raises:
        WriteError: the file cannot be written.
    """
    ids = [category.id for category in annotations.categories]
    with files.replacing(path) as file:
        # One at a time: there are millions.
        for i in range(len(found)):
            entry = {
                "image_id": int(annotations.image_ids[found.images[i]]),
                "category_id": ids[found.classes[i]],
                "bbox": found.boxes[i].round(2).tolist(),
                "score": float(f"{found.scores[i]:.6g}"),
            }
            file.write(("[" if i == 0 else ",\n") + json.dumps(entry))
        file.write("]\n" if len(found) else "[]\n")


def read_detections(path: Path, annotations: Annotations) -> Detections:
    """The detections of a file, in its order.

    Args:
        path: of the file.
        annotations: of the same images.

    Raises:
        InputError: the file cannot be read or has no detection, or an entry is of an unknown image or category, or damaged.
    """
    entries = read_json(path, _WAY_OUT)
    if not isinstance(entries, list):
        raise InputError(f"{path} is not a list; {_WAY_OUT}")
    if not entries:
        raise InputError(f"{path}: no detection, so that there is no average precision; {_WAY_OUT}")
    images = Places(annotations.image_ids, "image_id", annotations.path)
    classes = Places([each.id for each in annotations.categories], "category_id", annotations.path)
    rows, labels, scores, sides = [], [], [], []
    for i, entry in enumerate(entries):
        where = f"{path}: detection {i}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is {fields.shown(entry)}; {_WAY_OUT}")
        rows.append(images.of(entry.get("image_id"), where))
        labels.append(classes.of(entry.get("category_id"), where))
        box: Any = entry.get("bbox")
        score = entry.get("score")
        reason = boxes.reason_against(box)
        if reason:
            raise InputError(f"{where}: {reason}; wanted left, top, width and height in pixels")
        # A whole number may be larger than any float, NaN is not smaller.
        if not isinstance(score, int | float) or isinstance(score, bool) or not abs(score) <= _LARGEST:
            raise InputError(f"{where} has the score {fields.shown(score)}, not a number; {_WAY_OUT}")
        scores.append(score)
        sides.append(box)
    return Detections(
        np.array(rows, np.int64),
        np.array(labels, np.int32),
        np.array(scores, np.float64),
        np.array(sides, np.float64),
    )
