"""Summary and checks of the data before a run uses them."""

import numpy as np

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.files import FileSource
from cfmlc_jax.data.sources.tfds import Tfds
from cfmlc_jax.errors import InputError


def summary(name: str, source: Source, *, read_boxes: bool = False) -> str:
    """Text about a source: images, labels per image, positives per class (min, median, max), first ids.

    It reads no image. It also names classes without positives, whose average precision is undefined, and
    excluded boxes.

    Args:
        name: name of the split.
        source: the split.
        read_boxes: whether boxes that are not in memory yet are read, and their exclusions reported too.
    """
    positives = class_counts(source)
    rarest, commonest = int(positives.argmin()), int(positives.argmax())
    lines = [
        f"{name}: {len(source):,} images, {len(source.class_names)} classes, "
        f"{positives.sum() / len(source):.2f} labels per image",
        f"  positives per class: min {positives[rarest]:,} ({source.class_names[rarest]}), "
        f"median {np.median(positives):,.0f}, max {positives[commonest]:,} ({source.class_names[commonest]})",
    ]
    absent = np.flatnonzero(positives == 0)
    if absent.size:
        named = ", ".join(source.class_names[column] for column in absent[:5])
        lines.append(f"  without a positive: {absent.size} ({named}{', …' if absent.size > 5 else ''})")
    unknown = num_unknown(source.labels)
    if unknown:
        share = unknown / source.labels.size
        lines.append(
            f"  unknown labels: {unknown:,} of {source.labels.size:,} ({share:.1%}), left out of loss and metrics"
        )
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
    """Raise unless every image has exactly one label.

    Args:
        name: name of the split.
        source: the split.
        loss: name of the loss that needs single labels, for the message.

    Raises:
        InputError: some images do not, the message has their number and the first; or labels are unknown.
    """
    unknown = num_unknown(source.labels)
    if unknown:
        raise InputError(
            f"{name}: {unknown:,} labels are unknown, but config.loss.name {loss!r} is a softmax loss, which needs all; set "
            "loss.name to 'asymmetric', or data.unmentioned to 'absent'"
        )
    labels = source.labels.sum(axis=1, dtype=np.int64)
    others = np.flatnonzero(labels != 1)
    if others.size:
        raise InputError(
            f"{name}: {others.size} of {len(source)} images do not have exactly one label, which config.loss.name "
            f"{loss!r} needs (first {source.ids[others[0]]}, with {labels[others[0]]}); set loss.name to 'asymmetric'"
        )


def class_counts(source: Source) -> np.ndarray:
    """Number of images known to have each class: int64 [k]."""
    return (source.labels > 0).sum(axis=0, dtype=np.int64)


def class_rates(labels: np.ndarray) -> np.ndarray:
    """Share of images with each class, of those in which it is known: labels [n, k] -> float64 [k]."""
    return (labels > 0).sum(axis=0) / np.maximum((labels >= 0).sum(axis=0), 1)


def num_unknown(labels: np.ndarray) -> int:
    """Number of unknown entries of labels [n, k]."""
    return int((labels < 0).sum()) if labels.dtype.kind == "i" else 0


def require_disjoint(a: Source, b: Source) -> None:
    """Raise if an image is in both sources; the same file is the same image, even with different ids.

    Raises:
        InputError: images are shared; the message has their number and the first three.
    """
    shared = sorted(set(_identities(a)).intersection(_identities(b)))
    if shared:
        raise InputError(
            f"{len(shared)} images are in both {a!r} and {b!r}, first {', '.join(shared[:3])}; "
            "remove them from one of the two, or scores are not measured on unseen images"
        )


def _identities(source: Source) -> list[str]:
    # Ids of the other sources are unique over all splits.
    return source.pictures() if isinstance(source, FileSource | Tfds) else source.ids


def require_same_classes(train: Source, other: Source) -> None:
    """Raise unless both splits have the same classes in the same order.

    Raises:
        InputError: they differ; the message names the first class that does.
    """
    a, b = train.class_names, other.class_names
    if a != b:
        place = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        names = [f"{names[place]!r}" if place < len(names) else "none" for names in (a, b)]
        raise InputError(
            f"class {place} is {names[0]} in {train!r} and {names[1]} in {other!r}; "
            "give both the same classes in the same order"
        )
