"""Regions of the embedded digit scenes, as a detector would propose them, and annotations in the form of LVIS.

Each digit has its true box and some that are shifted and scaled; the other boxes are at random places. The training
scenes are chosen so that digit 0 is in most of them and digit 9 in the fewest.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.data.regions.assign import assign
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.data.regions.records import Writer
from cfmlc_jax.data.sources.scenes import CLASS_NAMES, Scenes

# Boxes around each digit besides its own, and boxes elsewhere in a scene.
JITTERED, ELSEWHERE = 3, 10
# Least overlap of a region with its object.
OVERLAP = 0.5
# Sides of boxes elsewhere, as fractions of the scene's; those of digits are within.
_SIDES = (0.2, 0.5)
# Ids of categories need not start at 0.
_FIRST_ID = 1


def targets(largest: int, smallest: int) -> np.ndarray:
    """Training scenes of each digit, falling exponentially: int64 [10]."""
    share = np.arange(len(CLASS_NAMES)) / (len(CLASS_NAMES) - 1)
    return np.round(largest * (smallest / largest) ** share).astype(np.int64)


def long_tailed(labels, most) -> np.ndarray:
    """Scenes in which no digit is more often than allowed, the first that fit: labels [n, 10] -> int64 [at most n].

    Args:
        labels: of the scenes.
        most: greatest number of scenes with each digit, [10].
    """
    counts, kept = np.zeros(len(most), np.int64), []
    for scene, present in enumerate(np.asarray(labels) > 0):
        if (counts + present <= most).all():
            counts += present
            kept.append(scene)
    return np.array(kept, np.int64)


def categories(counts: Iterable[int]) -> tuple[Category, ...]:
    """The digits as categories, by their numbers of training scenes, with LVIS' borders between frequencies."""
    frequencies = ["r" if count <= 10 else "c" if count <= 100 else "f" for count in counts]
    return tuple(
        Category(_FIRST_ID + digit, name, frequency)
        for digit, (name, frequency) in enumerate(zip(CLASS_NAMES, frequencies, strict=True))
    )


def propose(corners: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Boxes of regions: the digits' own, jittered ones, and ones elsewhere: float32 [r, 4].

    Args:
        corners: of the digits [m, 4], left, top, right, bottom.
        size: side of the scene.
        generator: draws the boxes.
    """
    sides = corners[:, 2:] - corners[:, :2]
    centres = np.repeat((corners[:, :2] + corners[:, 2:]) / 2, JITTERED, axis=0)
    sides = np.repeat(sides, JITTERED, axis=0)
    centres = centres + sides * generator.uniform(-0.25, 0.25, sides.shape)
    sides = sides * generator.uniform(0.75, 1.3, sides.shape)
    jittered = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    sides = size * generator.uniform(*_SIDES, (ELSEWHERE, 2))
    starts = generator.uniform(0, 1, (ELSEWHERE, 2)) * (size - sides)
    elsewhere = np.concatenate([starts, starts + sides], axis=1)
    return np.concatenate([corners, jittered, elsewhere]).clip(0, size).astype(np.float32)


def write(
    folder: Path,
    scenes: Scenes,
    chosen,
    of_categories: tuple[Category, ...],
    features: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    shape: tuple[int, ...],
    seed: int,
    stages: int = 1,
) -> None:
    """Write the records of scenes.

    Args:
        folder: of the records.
        scenes: the source.
        chosen: positions of the scenes, [n].
        of_categories: from `categories`.
        features: a function of an image uint8 [h, w, 3] and boxes [r, 4] -> features [r, s, …].
        shape: of a region's features.
        seed: of the boxes.
        stages: s, which share their labels.
    """
    writer = Writer(folder, shape=shape, categories=of_categories, stages=stages, detector="digit scenes")
    for scene in chosen:
        image, objects = scenes.painted(int(scene))
        corners = np.array([each.box for each in objects], np.float64)
        boxes = propose(corners, scenes.size, np.random.default_rng([seed, int(scene)]))
        labels = assign(
            boxes,
            corners,
            [each.digit for each in objects],
            overlap=OVERLAP,
            background=len(of_categories),
        )
        writer.add(int(scene), features(image, boxes), boxes, np.repeat(labels[:, None], stages, axis=1))
    writer.close()


def annotations(scenes: Scenes, chosen, of_categories: tuple[Category, ...], counts) -> dict[str, Any]:
    """The annotations of scenes as JSON values in the form of LVIS: of each scene all digits are known.

    Args:
        scenes: the source.
        chosen: positions of the scenes, [n].
        of_categories: from `categories`.
        counts: training scenes with each digit, [10].
    """
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for scene in np.asarray(chosen).tolist():
        objects = scenes.objects(scene)
        present = {each.digit for each in objects}
        images.append(
            {
                "id": scene,
                "width": scenes.size,
                "height": scenes.size,
                "neg_category_ids": [
                    category.id for digit, category in enumerate(of_categories) if digit not in present
                ],
                "not_exhaustive_category_ids": [],
            }
        )
        for each in objects:
            left, top, right, bottom = each.box
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": scene,
                    "category_id": of_categories[each.digit].id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
            )
    listed = [
        {"id": each.id, "name": each.name, "frequency": each.frequency, "image_count": int(count)}
        for each, count in zip(of_categories, counts, strict=True)
    ]
    return {"categories": listed, "images": images, "annotations": entries}
