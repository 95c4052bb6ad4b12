"""What to look at, and what must hold, before a run trusts its data."""

import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.files import FileSource
from cfmlc_jax.data.sources.tfds import Tfds
from cfmlc_jax.errors import InputError


def summary(name: str, source: Source, *, read_boxes: bool = False) -> str:
    """Text about a source: images, labels an image, positives of the rarest, median and commonest class, first ids.

    Reads no image. Classes without a positive are named: their average precision has no value. So are
    boxes that are left out.

    Args:
        name: of the split.
        source: the split.
        read_boxes: read boxes that are not in memory yet, and name those of them that are left out too.
    """
    positives = source.labels.sum(axis=0, dtype=np.int64)
    rarest, commonest = int(positives.argmin()), int(positives.argmax())
    lines = [
        f"{name}: {len(source):,} images, {len(source.class_names)} classes, "
        f"{positives.sum() / len(source):.2f} labels an image",
        f"  positives a class: min {positives[rarest]:,} ({source.class_names[rarest]}), "
        f"median {np.median(positives):,.0f}, max {positives[commonest]:,} ({source.class_names[commonest]})",
    ]
    absent = np.flatnonzero(positives == 0)
    if absent.size:
        named = ", ".join(source.class_names[column] for column in absent[:5])
        lines.append(f"  without a positive: {absent.size} ({named}{', …' if absent.size > 5 else ''})")
    left_out = _left_out(source, read_boxes)
    if left_out:
        lines.append(f"  {left_out}")
    lines.append(f"  first ids: {', '.join(source.ids[:3])}")
    return "\n".join(lines)


def _left_out(source, read_boxes):
    if not isinstance(source, FileSource):
        return ""
    boxes = source.boxes() if read_boxes else None
    return source.left_out if boxes is None else boxes.left_out


def require_one_label(name: str, source: Source, loss: str) -> None:
    """Nothing, if every image has exactly one label.

    Args:
        name: of the split.
        source: the split.
        loss: that needs it, for the message.

    Raises:
        InputError: with how many images have not, and the first.
    """
    labels = source.labels.sum(axis=1, dtype=np.int64)
    others = np.flatnonzero(labels != 1)
    if others.size:
        raise InputError(
            f"{name}: {others.size} of {len(source)} images have not exactly one label, which config.loss.name "
            f"{loss!r} is for (first {source.ids[others[0]]}, with {labels[others[0]]}); take loss.name 'asymmetric'"
        )


def class_counts(source: Source) -> np.ndarray:
    """Images of each class in a training split, int64 [k]."""
    return source.labels.sum(axis=0, dtype=np.int64)


def require_disjoint(a: Source, b: Source) -> None:
    """Nothing, if no image is in both sources: one file is one image, whatever its ids are.

    Raises:
        InputError: with how many images are shared and the first three.
    """
    shared = sorted(set(_identities(a)).intersection(_identities(b)))
    if shared:
        raise InputError(
            f"{len(shared)} images are in both {a!r} and {b!r}, first {', '.join(shared[:3])}; "
            "remove them from one, or the scores are not of unseen images"
        )


def _identities(source: Source) -> list[str]:
    # Ids of the others are unique over all splits.
    return source.pictures() if isinstance(source, FileSource | Tfds) else source.ids


def require_same_classes(train: Source, other: Source) -> None:
    """Nothing, if both splits have the same classes in the same order.

    Raises:
        InputError: with the first class that differs.
    """
    a, b = train.class_names, other.class_names
    if a != b:
        place = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        names = [f"{names[place]!r}" if place < len(names) else "none" for names in (a, b)]
        raise InputError(
            f"class {place} is {names[0]} in {train!r} and {names[1]} in {other!r}; give both the same classes in one order"
        )
