"""Names to losses of classifiers: one visible table."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cfmlc_jax.losses import softmax
from cfmlc_jax.losses.asymmetric import asymmetric_loss

# multi_label: any number of labels an image, a loss of each entry [b, k]. single_label: exactly one, a loss
# of each image [b].
TASKS = ("multi_label", "single_label")


class Loss(NamedTuple):
    """A loss by name.

    function: (logits [b, k], labels [b, k], **options) -> [b, k], or [b] for a single label.
    task: one of `TASKS`.
    options: field of a configuration's `loss` -> keyword of the function.
    weighs_classes: the function also takes `weights` [k], `softmax.class_weights` of the training images.
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


def create(loss: Any, class_counts: Any = None) -> Callable[[Any, Any], Any]:
    """The loss that config.loss names: (logits, labels), both [b, k] -> [b, k], or [b] for a single label.

    Args:
        loss: section of a configuration, with `name` and the fields that this loss reads.
        class_counts: training images [k] of each class, without which a loss that weighs classes cannot train.

    Raises:
        InputError: a class without a training image, for a loss that weighs classes.
    """
    entry = LOSSES[loss.name]
    options = {keyword: getattr(loss, field) for field, keyword in entry.options.items()}
    if entry.weighs_classes and class_counts is None:

        def cannot_train(logits, labels):
            raise ValueError(f"{loss.name} is trained with the classes' numbers of images")

        return cannot_train
    if entry.weighs_classes:
        options["weights"] = softmax.class_weights(class_counts)
    return lambda logits, labels: entry.function(logits, labels, **options)
