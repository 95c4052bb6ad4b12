"""PAT, patching-based training and inference (Xie et al., ICML 2024, arXiv:2404.06287; reference code MLC-PAT).

A classifier learns a class from the objects that co-occur with it, its context, as well as from the target
object itself. PAT scores an image and its patches with one backbone. For each class, the pivot patch is the
patch that looks most like the class; its evidence is free of most of the context. Where everything is:

- Methods (`METHODS`): PAT-T trains and predicts with patches. PAT-I trains on whole images and predicts with
  patches. The baseline uses whole images only.
- Head (`models.heads.linear`): a linear branch for the whole image, one for the attention of patches and one
  for their scores. PAT-I has the first only, and scores patches with it.
- Patches: a `patching.Whole` object makes them and reads their attention and scores from the outputs; a
  `causal.patches.Pooling` pools these to one logit per class.
- Loss (`loss_parts`): the asymmetric loss of the whole-image logits plus that of the pooled patch logits. Or the whole
  learns from the patches instead of from the labels (`patches.distil`; not in the paper).
- Prediction (`predict`): the mean of whole-image and patch logits, weighted equally by default.
- Counterfactuals (`counterfactuals`): the same prediction with a null in place of the image or of each class's
  pivot patch. The total direct effect is computed from them (`causal.effects`). Without owned pixels: `ownership`.
- Recipe: `config.recipes.mlc_pat`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify.patching import Evidence, Whole
from cfmlc_jax.losses.distillation import distillation
from cfmlc_jax.models.classifier import Outputs


class Method(NamedTuple):
    """Whether a method scores patches in training and in prediction."""

    train_patches: bool
    predict_patches: bool


METHODS = {
    "pat_t": Method(train_patches=True, predict_patches=True),
    "pat_i": Method(train_patches=False, predict_patches=True),
    "whole": Method(train_patches=False, predict_patches=False),
    # Whole images too, with another loss and head (`classify.invariant`).
    "invariant": Method(train_patches=False, predict_patches=False),
}


def loss_names(method: Method) -> tuple[str, ...]:
    """Names of the terms of the loss."""
    return ("loss_whole", "loss_patch") if method.train_patches else ("loss_whole",)


def loss_parts(
    outputs: Outputs, labels, *, loss: Callable, patching: Whole, pooling: Pooling, distil: bool = False
) -> dict:
    """The terms of the loss, scalars by `loss_names`; training minimises their sum.

    Args:
        outputs: of the classifier for the training views.
        labels: [b, k].
        loss: a function of logits and labels, two [b, k] -> scalar.
        patching: where the patches of training come from.
        pooling: of patch evidence to one logit per class.
        distil: the whole learns the patches' probabilities, summed over entries, not the labels. Needs patches.
    """
    whole = outputs.whole[:, 0]
    evidence = patching.evidence(outputs)
    if evidence is None:
        return {"loss_whole": loss(whole, labels)}
    patch = pooling.logits(*evidence)
    return {
        "loss_whole": distillation(whole, patch).sum() if distil else loss(whole, labels),
        "loss_patch": loss(patch, labels),
    }


def predict(outputs: Outputs, patching: Whole, pooling: Pooling) -> dict:
    """Factual logits: "whole", "patch", "combined", each [b, k].

    Without patches there is no "patch", and "combined" equals "whole".
    """
    whole = outputs.whole[:, 0]
    evidence = patching.evidence(outputs)
    if evidence is None:
        return {"whole": whole, "combined": whole}
    patch = pooling.logits(*evidence)
    return {"whole": whole, "patch": patch, "combined": effects.combine(whole, patch, pooling.weight)}


class Null(NamedTuple):
    """What the classifier says of null images.

    combined: their combined logits, [1 or b, k].
    evidence: attention and scores of their patches, two [1 or b, p, k]; None without patches.
    """

    combined: Any
    evidence: Evidence | None


def of_null(apply: Callable, blank, *, patching: Whole, pooling: Pooling) -> Null:
    """What the classifier says of null images [1 or b, s, s, 3] (`causal.effects.null_images`).

    A null that is the same for all images needs this once for each set of weights.
    """
    outputs = apply(patching.null_inputs(blank))
    return Null(predict(outputs, patching, pooling)["combined"], patching.evidence(outputs))


def counterfactuals(
    apply: Callable,
    images,
    outputs: Outputs,
    blank,
    kinds,
    *,
    patching: Whole,
    pooling: Pooling,
    null: Null | None = None,
) -> dict:
    """Combined counterfactual logits by kind, each [b, k]; or [1, k] if they are the same for all images.

    "whole": the null replaces the image and all its patches. "pivot": for each class, the null replaces its
    pivot patch, in the image and in all patches that overlap it; the rest of the image, the context, stays.
    It is a mean over all patches: class k weighs the logits without patch p by its attention to p, so that its
    pivot patch dominates. The patches are removed one after the other, so that the memory is that of one
    forward pass.

    Args:
        apply: the classifier, from model inputs (`patching.inputs`) to Outputs.
        images: the host's views [b, v, s, s, 3] in [0, 1]; the first view of each image is the whole image.
        outputs: the factual outputs.
        blank: null images [1 or b, s, s, 3] (`causal.effects.null_images`).
        kinds: a subset of "whole" and "pivot"; "pivot" only if `patching.removable`.
        patching: where the patches come from.
        pooling: of patch evidence to one logit per class.
        null: what `of_null` says of `blank`; None: computed here.

    Raises:
        ValueError: kind "pivot" without patches.
    """
    if null is None:
        null = of_null(apply, blank, patching=patching, pooling=pooling)
    logits = {}
    if "whole" in kinds:
        logits["whole"] = null.combined
    if "pivot" in kinds:
        evidence = patching.evidence(outputs)
        if evidence is None or null.evidence is None:
            raise ValueError("the counterfactual of kind 'pivot' needs patches")
        removed = patching.whole_without_each(apply, images, blank)
        attention, score = patching.evidence_without_each(apply, images, blank, evidence, null.evidence)
        pooled = effects.pooled_without_each(attention, score, pooling.logits)
        focus = pooling.focus(*evidence)
        logits["pivot"] = effects.pivot_counterfactual(
            focus, effects.combine(removed, pooled, pooling.weight)
        )
    return logits
