"""Counterfactuals without the pixels that a class owns (`causal.owners`): objects removed, all else kept.

The patches of a classifier say who owns a pixel (`owned`). Another classifier can use their answer, also one without
patches (`without_owners`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.causal import owners, views
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.models.classifier import Outputs


class Owned(NamedTuple):
    """The evidence of each class in each patch, and the pixels that the patches see.

    evidence: nats, [b, p, k] (`causal.owners.evidence`).
    rows, columns: how far the patches cover the rows and the columns of the whole view, two [p, s]
        (`causal.owners.footprints`).
    """

    evidence: Any
    rows: Any
    columns: Any


def owned(outputs: Outputs, size: int, *, patching: Whole, pooling: Pooling) -> Owned:
    """What the patches of a classifier say about who owns the pixels of whole views of a size.

    Raises:
        ValueError: there are no patches.
    """
    evidence, boxes = patching.evidence(outputs), patching.boxes(size)
    if evidence is None or boxes is None:
        raise ValueError("pixels have owners only where there are patches")
    return Owned(owners.evidence(*evidence, pooling), *owners.footprints(boxes, size, patching.reach))


def without_owners(
    apply: Callable,
    images,
    combined,
    mean_colour,
    ownership: Owned,
    classes: int,
    *,
    patching: Whole,
    pooling: Pooling,
):
    """Combined logits [b, k]; that of each class is of the image without the pixels that the class owns.

    Only the classes with the most evidence in an image lose their pixels, one after the other, so that the memory is
    that of one forward pass. The logits of all others are the factual ones, and so are those of a class that owns no
    pixel.

    Args:
        apply: the classifier, from model inputs (`patching.inputs`) to Outputs.
        images: the host's views [b, v, s, s, 3] in [0, 1]; the first view of each image is the whole image.
        combined: factual logits [b, k].
        mean_colour: [3], of an image that one class owns completely.
        ownership: of the pixels; it may be another classifier's.
        classes: number of classes in each image that lose their pixels.
        patching: of `apply`.
        pooling: of `apply`.
    """
    whole = images[:, 0]
    most = min(classes, combined.shape[1])
    _, removed_classes = jax.lax.top_k(ownership.evidence.sum(axis=1), most)

    def without(removed_class):
        evidence = jnp.take_along_axis(ownership.evidence, removed_class[:, None, None], axis=2)[..., 0]
        removed = owners.region(evidence, ownership.rows, ownership.columns)
        filled = owners.continued(whole, removed, mean_colour)
        outputs = apply(patching.inputs(edited(images, filled, removed, patching)))
        logits = pat.predict(outputs, patching, pooling)["combined"]
        logits = jnp.where(removed.any(axis=(1, 2))[:, None], logits, combined)
        return jnp.take_along_axis(logits, removed_class[:, None], axis=1)[:, 0]

    logits = jax.lax.map(without, removed_classes.T)
    # Image by image, so that devices keep their own images.
    return jax.vmap(lambda row, places, values: row.at[places].set(values))(
        combined, removed_classes, logits.T
    )


def edited(images, whole, changed, patching: Whole):
    """The host's views after pixels of the whole views were changed: [b, v, s, s, 3].

    Args:
        images: the host's views [b, v, s, s, 3].
        whole: the changed whole views [b, s, s, 3].
        changed: bool [b, s, s], the pixels that were changed.
        patching: where the patches come from. Those of the host get new pixels where they depend on changed ones.
    """
    if patching.host_grid is None:
        return whole[:, None]
    cut = functools.partial(
        views.split, grid=patching.host_grid, overlap=patching.overlap, size=whole.shape[1]
    )
    touched = cut(changed[..., None].astype(jnp.float32)) > 0
    patches = jnp.where(touched, cut(whole), images[:, 1:])
    return jnp.concatenate([whole[:, None], patches], axis=1)
