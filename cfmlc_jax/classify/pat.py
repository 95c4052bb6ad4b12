"""PAT, patching-based training and inference (Xie et al., ICML 2024, arXiv:2404.06287; reference code MLC-PAT).

An image shows a target among objects that usually accompany it. Image and patches pass one backbone;
of every class the pivot patch, the one that looks most like it, gives evidence that is free of most of
the context.

- Methods: PAT-T trains with patches and predicts with them, PAT-I predicts with them only; the baseline
  takes whole images alone (`METHODS`).
- Head: a linear layer for wholes, one for the patches' attention, one for their scores
  (`models.heads.linear`); PAT-I has the first alone.
- Loss: that of the whole and that of the pooled patches (`loss_parts`), each asymmetric and summed.
- Prediction: the mean of whole and patch logits (`predict`).
- Effects: total direct effect of the image, and of each class's pivot patch (`counterfactuals`). Both ask
  about images that lack something; training may mask patches, to make such images familiar
  (`mask_patches`).
- Recipe: `config.recipes.mlc_pat`. Patches come from a `patching` object, their evidence is pooled by a
  `causal.patches.Pooling`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.causal import effects, views
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.models.classifier import Outputs


class Method(NamedTuple):
    """Whether patches are scored in training, and in prediction."""

    train_patches: bool
    predict_patches: bool


METHODS = {
    "pat_t": Method(train_patches=True, predict_patches=True),
    "pat_i": Method(train_patches=False, predict_patches=True),
    "whole": Method(train_patches=False, predict_patches=False),
}


def loss_names(method: Method) -> tuple[str, ...]:
    """Names of the parts of the loss."""
    return ("loss_whole", "loss_patch") if method.train_patches else ("loss_whole",)


def loss_parts(outputs: Outputs, labels, *, loss: Callable, patching: Whole, pooling: Pooling) -> dict:
    """Scalars by `loss_names`, whose sum training minimises.

    Args:
        outputs: of the training views.
        labels: [b, k].
        loss: logits and labels, two [b, k] -> scalar.
        patching: of training.
        pooling: of patches.
    """
    parts = {"loss_whole": loss(outputs.whole[:, 0], labels)}
    evidence = patching.evidence(outputs)
    if evidence is not None:
        parts["loss_patch"] = loss(pooling.logits(*evidence), labels)
    return parts


def predict(outputs: Outputs, patching: Whole, pooling: Pooling) -> dict:
    """Factual logits: "whole", "patch", "combined", each [b, k].

    Without patches there is nothing but "whole", and "combined" is the same.
    """
    whole = outputs.whole[:, 0]
    evidence = patching.evidence(outputs)
    if evidence is None:
        return {"whole": whole, "combined": whole}
    patch = pooling.logits(*evidence)
    return {"whole": whole, "patch": patch, "combined": effects.combine(whole, patch)}


def counterfactuals(
    apply: Callable, images, outputs: Outputs, blank, kinds, *, patching: Whole, pooling: Pooling
) -> dict:
    """Combined logits [b, k] (or [1, k], the same for all images) by kind of counterfactual.

    "whole": the image and all its patches show the null. "pivot": a class's pivot patch shows the null, in
    the image and in every patch that overlaps it; the rest, the context, is kept. Class k weighs the
    removals by its own attention.

    Args:
        apply: what the model sees -> Outputs, the same classifier.
        images: the host's views [b, v, s, s, 3] in [0, 1], the first of each image the whole one.
        outputs: the factual outputs.
        blank: null images [1 or b, s, s, 3] (`causal.effects.null_images`).
        kinds: of "whole" and "pivot", the latter where `patching.removable`.
        patching: where patches come from.
        pooling: of patches.
    """
    null_outputs = apply(patching.null_inputs(blank))
    logits = {}
    if "whole" in kinds:
        logits["whole"] = predict(null_outputs, patching, pooling)["combined"]
    if "pivot" in kinds:
        evidence, null = patching.evidence(outputs), patching.evidence(null_outputs)
        if evidence is None or null is None:
            raise ValueError("a pivot's counterfactual needs patches")
        wholes = views.remove_patches(images[:, 0], blank, patching.grid, overlap=patching.overlap)
        removed = apply(wholes).whole
        attention, score = patching.evidence_without_each(apply, images, blank, evidence, null)
        pooled = effects.pooled_without_each(attention, score, pooling.logits)
        focus = pooling.focus(*evidence)
        logits["pivot"] = effects.pivot_counterfactual(focus, effects.combine(removed, pooled))
    return logits


def mask_patches(key, images, *, rate: float, null: str, mean_colour, patching: Whole):
    """Views [b, v, s, s, 3] of which some show the null where one patch was, in all views of that place.

    Args:
        key: random.
        images: the host's views [b, v, s, s, 3] in [0, 1].
        rate: probability that an image lacks a patch.
        null: what the patch shows instead, see `causal.effects.null_images`.
        mean_colour: [3], for the null "mean".
        patching: of training; its grid cuts the patches.
    """
    b, _, size, _, _ = images.shape
    count = len(views.patch_boxes(size, patching.grid, patching.overlap))
    which, whether = jax.random.split(key)
    drawn = jax.random.randint(which, (b,), 0, count)
    patch = jnp.where(jax.random.bernoulli(whether, rate, (b,)), drawn, -1)
    blank = effects.null_images(images[:, 0], null, mean_colour)
    return patching.masked(images, blank, patch)
