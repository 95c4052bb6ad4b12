"""The table of the classifiers' losses by name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from cfmlc_jax.losses import softmax
from cfmlc_jax.losses.asymmetric import asymmetric_loss

# multi_label: an image has any number of labels; the loss is per entry, [b, k]. single_label: an image has
# exactly one label; the loss is per image, [b].
TASKS = ("multi_label", "single_label")


class Loss(NamedTuple):
    """A loss by name.

    function: (logits [b, k], labels [b, k], **options) -> [b, k], or [b] for a single-label loss.
    task: one of `TASKS`.
    options: field of config.loss -> keyword of the function.
    weighs_classes: the function also takes `weights` [k], the `softmax.class_weights` of the training images.
    """

    function: Callable[..., Any]
    task: str
    options: Mapping[str, str] = {}
    weighs_classes: bool = False


LOSSES = {
    "asymmetric": Loss(
        asymmetric_loss, "multi_label", {name: name for name in ("gamma_neg", "gamma_pos", "clip")}
    ),
    "cross_entropy": Loss(softmax.cross_entropy, "single_label"),
    "focal": Loss(softmax.focal, "single_label", {"focal_gamma": "gamma"}),
    "weighted_cross_entropy": Loss(softmax.weighted_cross_entropy, "single_label", weighs_classes=True),
}


def create(loss: Any, class_counts: Any = None, *, partial: bool = False) -> Callable[[Any, Any], Any]:
    """The loss named by config.loss: (logits, labels), both [b, k] -> [b, k], or [b] if single-label.

    Args:
        loss: section `loss` of the configuration: `name`, and the fields that this loss reads.
        class_counts: [k] training images per class; a loss with class weights cannot train without them.
        partial: labels may be −1, unknown: such entries have no loss (`known_only`). Multi-label losses alone.

    Raises:
        InputError: a class has no training image, and the loss weights classes.
    """
    entry = LOSSES[loss.name]
    options = {keyword: getattr(loss, field) for field, keyword in entry.options.items()}
    if entry.weighs_classes and class_counts is None:

        def cannot_train(logits, labels):
            raise ValueError(f"loss {loss.name!r} needs class_counts, the training images per class")

        return cannot_train
    if entry.weighs_classes:
        options["weights"] = softmax.class_weights(class_counts)

    def per_entry(logits, labels):
        return entry.function(logits, labels, **options)

    return known_only(per_entry) if partial else per_entry


def known_only(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A multi-label loss whose unknown entries, label −1, are 0 and have no gradient: (logits, labels) -> [b, k].

    The caller's sum over a batch is then over the known entries; it is not rescaled by their share, so that an image
    counts as much as is known of it.
    """

    def masked(logits, labels):
        entries = loss(logits, jnp.maximum(labels, 0))
        return jnp.where(labels < 0, jnp.zeros_like(entries), entries)

    return masked


def batch_weight(loss: Any, class_counts: Any = None) -> Callable[[Any], Any]:
    """The weight of a batch in the mean of several, of a single-label loss: labels [b, k] -> scalar.

    The mean over images that training minimises is then the same for a batch and for its parts together.

    Args:
        loss: section `loss` of the configuration.
        class_counts: as for `create`.
    """
    if not LOSSES[loss.name].weighs_classes or class_counts is None:
        return len
    weights = softmax.class_weights(class_counts)
    return lambda labels: softmax.image_weights(labels, weights).sum()
