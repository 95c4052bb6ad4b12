"""Methods: what is trained on a classifier's outputs, and what is predicted from them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
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

    def neighbours(self, size):
        """The other patches that overlap each patch of a view of this size: int [p, m]."""
        return views.neighbours(size, self.grid, self.overlap)

    def without(self, seen, blank, patch):
        """All patches of images that lack one patch, as the model sees them: [b, p, s, s, 3].

        Cut anew from the whole view without the patch, or, of patches that come as views, with the
        null in the removed patch's place (`causal.views.without_one`).

        Args:
            seen: views [b, v, s, s, 3] as they come.
            blank: null images [1 or b, s, s, 3].
            patch: int [b], the number of the removed patch; negative for an image that lacks none.
        """
        size = seen.shape[2]
        if self.size is not None:
            whole = views.remove_one(seen[:, 0], blank, patch, self.grid, overlap=self.overlap)
            return views.split(whole, self.grid, overlap=self.overlap, size=self.size)
        blanks = views.split(blank, self.grid, overlap=self.overlap, size=size)
        return views.without_one(seen[:, 1:], blanks, patch, self.grid, overlap=self.overlap)


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
    """The method "pat_t", "pat_i" or "whole" (config/classifier.py says what each is) with the asymmetric loss."""

    def total(logits, labels):
        cells = losses.asymmetric_loss(logits, labels, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        # Summed over images and classes, as in the reference: Adam does not mind the scale.
        return cells.sum()

    return with_loss(name, total, pooling=pooling)


def one_label(loss: str, *, focal_gamma: float = 2.0, class_counts: Any = None) -> Method:
    """The method "whole" with a softmax's loss, the mean over images, for images of one label.

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

    return with_loss("whole", mean)


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
        "whole": Method(False, False, pool, ("loss_whole",), whole_loss),
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
    attention, score = _as_patches(outputs)
    return attention[:, 1:], score[:, 1:]


def _as_patches(outputs):
    """Attention and score logits of all views as patches, two [b, v, k]."""
    if outputs.attention is None:
        return outputs.whole, outputs.whole
    return outputs.attention, outputs.score


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
    apply: Callable, seen, outputs: Outputs, *, kinds, null, mean_colour, patches: Patches, pooling: Pooling
):
    """Combined logits [b, k] (or [1, k], one for all images) of each kind of counterfactual.

    "whole": the image and all its patches show the null. "pivot": the patch that a class looks at
    shows the null, in the image and in every patch that overlaps it; the rest is kept (DESIGN: class
    k weighs the removals by its own attention). "feature": what the whole view's logits owe to the
    mean feature of training; patches have no share in it. It takes no second forward pass.

    Args:
        apply: views [b, v, s, s, 3], or several such arrays -> Outputs, the same classifier.
        seen: views [b, v, s, s, 3] in [0, 1] as they come, the first of each image the whole one.
        outputs: the factual outputs, with patches that are views for "pivot".
        kinds: of "whole", "pivot", "feature", the last for heads with a mean feature.
        null: what removal shows, see `causal.effects.null_images`.
        mean_colour: [3], for the null "mean".
        patches: where they are.
        pooling: of patches.
    """
    images = seen[:, 0]
    evidence = patch_evidence(outputs)
    logits = {}
    if "feature" in kinds:
        logits["feature"] = _along_mean(outputs, with_patches=evidence is not None)
    if not {"whole", "pivot"} & set(kinds):
        return logits
    blank = effects.null_images(images, null, mean_colour)
    null_views = patches.cut(blank)
    if patches.size is None and outputs.cells is None and evidence is not None:
        split = views.split(blank, patches.grid, overlap=patches.overlap, size=images.shape[1])
        null_views = jnp.concatenate([null_views, split], axis=1)
    null_outputs = apply(null_views)
    if "whole" in kinds:
        logits["whole"] = predict(null_outputs, pooling)["combined"]
    if "pivot" in kinds:
        removed = apply(views.remove_patches(images, blank, patches.grid, overlap=patches.overlap)).whole
        attention, score = _without_each(apply, seen, blank, evidence, patch_evidence(null_outputs), patches)
        pooled = effects.pooled_without_each(attention, score, pooling.logits)
        focus = pooling.focus(*evidence)
        logits["pivot"] = effects.pivot_counterfactual(focus, effects.combine(removed, pooled))
    return logits


def _without_each(apply, seen, blank, evidence, null_evidence, patches: Patches):
    """Attention and scores of all patches of the image without each of them: two [b, p, p, k].

    Row p is the image without patch p. There only the patches that overlap p are judged again; one
    removal after another, so that memory holds the views of one.
    """
    count = evidence[0].shape[1]
    left = [jnp.repeat(logits[:, None], count, axis=1) for logits in evidence]
    neighbours = patches.neighbours(seen.shape[2])
    if neighbours.size:

        def judged_again(removal):
            patch, others = removal
            cut = patches.without(seen, blank, jnp.full(len(seen), patch))
            return _as_patches(apply(jnp.take(cut, others, axis=1)))

        again = jax.lax.map(judged_again, (jnp.arange(count), jnp.asarray(neighbours)))
        rows = jnp.arange(count)[:, None]
        left = [
            logits.at[:, rows, neighbours].set(jnp.moveaxis(new, 0, 1)) for logits, new in zip(left, again)
        ]
    return [effects.with_null_removed(*both) for both in zip(left, null_evidence)]


def _along_mean(outputs: Outputs, *, with_patches: bool):
    """The mean feature's part in the combined logits [b, k]."""
    of_whole = outputs.counterfactual[:, 0]
    return effects.combine(of_whole, jnp.zeros_like(of_whole)) if with_patches else of_whole
