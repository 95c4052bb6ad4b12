"""Methods: what is trained on a classifier's outputs, and what is predicted from them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from cfmlc_jax import losses
from cfmlc_jax.causal import effects, patches, views
from cfmlc_jax.models.classifier import Outputs


class Method(NamedTuple):
    """How the loop uses a classifier of views.

    train_patches, predict_patches: whether views beyond the whole are seen in training and
        prediction.
    loss_names: of the parts of the loss.
    loss: (outputs, labels [b, k]) -> dict of scalars by those names; training minimises their sum.
    """

    train_patches: bool
    predict_patches: bool
    loss_names: tuple[str, ...]
    loss: Callable


def create(name: str, *, gamma_neg: float, gamma_pos: float, clip: float) -> Method:
    """The method "pat_t", "pat_i" or "asl" (config.py says what each is) with its loss."""

    def total(logits, labels):
        cells = losses.asymmetric_loss(logits, labels, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        # Summed over images and classes, as in the reference: Adam does not mind the scale.
        return cells.sum()

    def whole_loss(outputs, labels):
        return {"loss_whole": total(outputs.whole[:, 0], labels)}

    def patch_loss(outputs, labels):
        patch = patches.patch_logits(outputs.attention[:, 1:], outputs.score[:, 1:])
        return whole_loss(outputs, labels) | {"loss_patch": total(patch, labels)}

    return {
        "pat_t": Method(True, True, ("loss_whole", "loss_patch"), patch_loss),
        "pat_i": Method(False, True, ("loss_whole",), whole_loss),
        "asl": Method(False, False, ("loss_whole",), whole_loss),
    }[name]


def patch_evidence(outputs: Outputs):
    """Attention and score logits of views, [b, v, k] each.

    A classifier with one head (PAT-I) judges patches by the logits it gives to wholes.
    """
    if outputs.attention is None:
        return outputs.whole, outputs.whole
    return outputs.attention, outputs.score


def predict(outputs: Outputs) -> dict:
    """Logits of the factual prediction: "whole", "patch", "combined", each [b, k].

    With the whole view alone there is nothing but "whole", and "combined" is the same.
    """
    whole = outputs.whole[:, 0]
    if outputs.whole.shape[1] == 1:
        return {"whole": whole, "combined": whole}
    attention, score = patch_evidence(outputs)
    patch = patches.patch_logits(attention[:, 1:], score[:, 1:])
    return {"whole": whole, "patch": patch, "combined": effects.combine(whole, patch)}


def counterfactuals(apply: Callable, images, outputs: Outputs, *, kinds, null, mean_colour, grid, overlap):
    """Combined logits [b, k] (or [1, k], one for all images) of each kind of counterfactual.

    "whole": the image and all its patches show the null. "pivot": the patch that a class looks at
    shows the null, in the image and among the patches; the rest is kept (DESIGN: class k weighs
    the removals by its own attention).

    Args:
        apply: views [b, v, s, s, 3] -> Outputs, the same classifier.
        images: whole views [b, s, s, 3] in [0, 1].
        outputs: the factual outputs, of the whole and grid² patches for "pivot".
        kinds: of "whole", "pivot".
        null: what removal shows, see `causal.effects.null_images`.
        mean_colour: [3], for the null "mean".
        grid: patches along one side.
        overlap: of patches.
    """
    size = images.shape[1]
    with_patches = outputs.whole.shape[1] > 1
    blank = effects.null_images(images, null, mean_colour)
    null_views = blank[:, None]
    if with_patches:
        null_views = jnp.concatenate(
            [null_views, views.split(blank, grid, overlap=overlap, size=size)], axis=1
        )
    null_outputs = apply(null_views)
    logits = {}
    if "whole" in kinds:
        logits["whole"] = predict(null_outputs)["combined"]
    if "pivot" in kinds:
        removed = apply(views.remove_patches(images, blank, grid, overlap=overlap)).whole
        attention, score = (x[:, 1:] for x in patch_evidence(outputs))
        null_attention, null_score = (
            jnp.broadcast_to(x[:, 1:], attention.shape) for x in patch_evidence(null_outputs)
        )
        pooled = effects.without_each_patch(attention, score, null_attention, null_score)
        logits["pivot"] = effects.pivot_counterfactual(attention, effects.combine(removed, pooled))
    return logits
