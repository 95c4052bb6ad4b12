"""Methods: what is trained on a classifier's outputs, and what is predicted from them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cfmlc_jax import losses
from cfmlc_jax.causal import effects, views
from cfmlc_jax.causal.patches import POOLINGS, Pooling
from cfmlc_jax.causal.views import Grid
from cfmlc_jax.models.classifier import Outputs


class Patches(NamedTuple):
    """Where a classifier's patches come from.

    grid, overlap: of patches cut from the image, as in `causal.views.cells`.
    size: side of patches cut on the device from the whole view, as the model sees them, pixels;
        None where they come as views of their own, or as cells of the model's map.
    """

    grid: Grid
    overlap: float = 0.0
    size: int | None = None

    def cut(self, whole):
        """What the model sees of images [b, s, s, 3]: their whole views, and patches if cut here."""
        if self.size is None:
            return whole[:, None]
        return whole[:, None], views.split(whole, self.grid, overlap=self.overlap, size=self.size)


class Method(NamedTuple):
    """How the loop uses a classifier of views.

    train_patches, predict_patches: whether patches are judged in training and prediction.
    pooling: of patches.
    loss_names: of the parts of the loss.
    loss: (outputs, labels [b, k]) -> dict of scalars by those names; training minimises their sum.
    """

    train_patches: bool
    predict_patches: bool
    pooling: Pooling
    loss_names: tuple[str, ...]
    loss: Callable


def create(name: str, *, gamma_neg: float, gamma_pos: float, clip: float, pooling: str = "pivot") -> Method:
    """The method "pat_t", "pat_i" or "asl" (config.py says what each is) with the asymmetric loss."""

    def total(logits, labels):
        cells = losses.asymmetric_loss(logits, labels, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        # Summed over images and classes, as in the reference: Adam does not mind the scale.
        return cells.sum()

    return with_loss(name, total, pooling=pooling)


def one_label(loss: str, *, focal_gamma: float = 2.0, class_counts: Any = None) -> Method:
    """The method "asl" with a softmax's loss, the mean over images, for images of one label.

    Args:
        loss: "cross_entropy", "focal" or "weighted_cross_entropy".
        focal_gamma: of "focal".
        class_counts: training images [k] of each class, which only training by "weighted_cross_entropy" needs.

    Raises:
        InputError: a class without a training image, for "weighted_cross_entropy".
    """
    weights = None
    if loss == "weighted_cross_entropy" and class_counts is not None:
        weights = losses.class_weights(class_counts)

    def mean(logits, labels):
        if loss == "cross_entropy":
            return losses.cross_entropy(logits, labels).mean()
        if loss == "focal":
            return losses.focal(logits, labels, focal_gamma).mean()
        if weights is None:
            raise ValueError("weighted_cross_entropy is trained with the classes' numbers of images")
        return losses.weighted_cross_entropy(logits, labels, weights).mean()

    return with_loss("asl", mean)


def with_loss(name: str, total: Callable, *, pooling: str = "pivot") -> Method:
    """The method of this name with the loss `total`: (logits, labels), both [b, k] -> scalar."""
    pool = POOLINGS[pooling]

    def whole_loss(outputs, labels):
        return {"loss_whole": total(outputs.whole[:, 0], labels)}

    def patch_loss(outputs, labels):
        patch = pool.logits(*patch_evidence(outputs))
        return whole_loss(outputs, labels) | {"loss_patch": total(patch, labels)}

    return {
        "pat_t": Method(True, True, pool, ("loss_whole", "loss_patch"), patch_loss),
        "pat_i": Method(False, True, pool, ("loss_whole",), whole_loss),
        "asl": Method(False, False, pool, ("loss_whole",), whole_loss),
    }[name]


def patch_evidence(outputs: Outputs):
    """Attention and score logits of the p patches, two [b, p, k], or None without patches.

    Patches are the cells of the first view's map where the classifier judges those, and else the
    views behind the first. A classifier with one head (PAT-I) judges patches by the logits it gives
    to wholes.
    """
    if outputs.cells is not None:
        return tuple(logits[:, 0] for logits in outputs.cells)
    if outputs.whole.shape[1] == 1:
        return None
    if outputs.attention is None:
        return outputs.whole[:, 1:], outputs.whole[:, 1:]
    return outputs.attention[:, 1:], outputs.score[:, 1:]


def predict(outputs: Outputs, pooling: Pooling = POOLINGS["pivot"]) -> dict:
    """Logits of the factual prediction: "whole", "patch", "combined", each [b, k].

    Without patches there is nothing but "whole", and "combined" is the same.
    """
    whole = outputs.whole[:, 0]
    evidence = patch_evidence(outputs)
    if evidence is None:
        return {"whole": whole, "combined": whole}
    patch = pooling.logits(*evidence)
    return {"whole": whole, "patch": patch, "combined": effects.combine(whole, patch)}


def counterfactuals(
    apply: Callable, images, outputs: Outputs, *, kinds, null, mean_colour, patches: Patches, pooling: Pooling
):
    """Combined logits [b, k] (or [1, k], one for all images) of each kind of counterfactual.

    "whole": the image and all its patches show the null. "pivot": the patch that a class looks at
    shows the null, in the image and among the patches; the rest is kept (DESIGN: class k weighs
    the removals by its own attention). "feature": what the whole view's logits owe to the mean
    feature of training; patches have no share in it. It takes no second forward pass.

    Args:
        apply: views [b, v, s, s, 3], or several such arrays -> Outputs, the same classifier.
        images: whole views [b, s, s, 3] in [0, 1].
        outputs: the factual outputs, with patches that are views for "pivot".
        kinds: of "whole", "pivot", "feature", the last for heads with a mean feature.
        null: what removal shows, see `causal.effects.null_images`.
        mean_colour: [3], for the null "mean".
        patches: where they are.
        pooling: of patches.
    """
    size = images.shape[1]
    evidence = patch_evidence(outputs)
    logits = {}
    if "feature" in kinds:
        logits["feature"] = _along_mean(outputs, with_patches=evidence is not None)
    if not {"whole", "pivot"} & set(kinds):
        return logits
    blank = effects.null_images(images, null, mean_colour)
    null_views = patches.cut(blank)
    if patches.size is None and outputs.cells is None and evidence is not None:
        split = views.split(blank, patches.grid, overlap=patches.overlap, size=size)
        null_views = jnp.concatenate([null_views, split], axis=1)
    null_outputs = apply(null_views)
    if "whole" in kinds:
        logits["whole"] = predict(null_outputs, pooling)["combined"]
    if "pivot" in kinds:
        removed = apply(views.remove_patches(images, blank, patches.grid, overlap=patches.overlap)).whole
        attention, score = evidence
        null_attention, null_score = (jnp.broadcast_to(x, score.shape) for x in patch_evidence(null_outputs))
        pooled = effects.without_each_patch(attention, score, null_attention, null_score, pool=pooling.logits)
        focus = pooling.focus(attention, score)
        logits["pivot"] = effects.pivot_counterfactual(focus, effects.combine(removed, pooled))
    return logits


def _along_mean(outputs: Outputs, *, with_patches: bool):
    """The mean feature's part in the combined logits [b, k]."""
    of_whole = outputs.counterfactual[:, 0]
    return effects.combine(of_whole, jnp.zeros_like(of_whole)) if with_patches else of_whole
