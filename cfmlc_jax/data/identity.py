"""Checks whether the data are still those that a checkpoint was trained on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfmlc_jax.data.sources import Source

# Greatest number of class names of each kind in an error message.
_LISTED = 5


def identity(source: Source) -> dict[str, Any]:
    """Number of "images" and digests of their "ids" and "labels" in order: a dict of JSON types.

    It reads no image, does not depend on where the files are, and is the same on every machine.
    """
    return {
        "images": len(source),
        "ids": _digest("\n".join(source.ids).encode()),
        "labels": _digest(np.ascontiguousarray(source.labels, np.uint8)),
    }


def changed_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Descriptions of the differences between two lists of class names; empty if they are equal."""
    if list(old) == list(new):
        return []
    added = [name for name in new if name not in set(old)]
    removed = [name for name in old if name not in set(new)]
    changes = [
        f"classes {verb}: {_some(names)}" for verb, names in (("added", added), ("removed", removed)) if names
    ]
    if changes:
        return changes
    pairs = enumerate(zip(old, new))
    moved = [f"{name} ({old.index(name)} -> {place})" for place, (before, name) in pairs if before != name]
    return [f"classes in another order: {_some(moved)}"]


def changed_images(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]], *, same_classes: bool
) -> list[str]:
    """Descriptions of the differences between the `identity`s of splits; only splits in both are compared.

    Args:
        old: `identity` by split.
        new: likewise.
        same_classes: whether classes are equal; if not, labels differ in any case and are not compared.
    """
    changes = []
    for split in old.keys() & new.keys():
        before, now = old[split], new[split]
        if before["images"] != now["images"]:
            changes.append(f"{split} has {now['images']:,} images, not {before['images']:,}")
        elif before["ids"] != now["ids"]:
            changes.append(f"{split} has other images, or another order of its {now['images']:,}")
        elif same_classes and before["labels"] != now["labels"]:
            changes.append(f"{split} has other labels on its {now['images']:,} images")
    return sorted(changes)


def _digest(data) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _some(names):
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
