"""Invariant classifiers, trained on counterfactual images (Sauer & Geiger, ICLR 2021, arXiv:2101.06046).

An image is made by independent mechanisms: shape, texture, background. In ordinary data they go together, so that a
classifier may learn any of them. In a generated counterfactual image each mechanism has a class of its own. Where
everything is:

- Head (`models.heads.mechanisms`): one linear layer per mechanism on a common backbone.
- Data (`data.counterfactuals`): training batches of real images and generated records, with the label of each
  mechanism (`data.pipeline.train_batches`).
- Loss (`loss_parts`): real images train the mean of the three logits; generated ones train each head with the label
  of its own mechanism, so that each head ignores the other mechanisms.
- Prediction: the mean of the three logits, "whole" and "combined" as for any classifier of whole images; and each
  head's own logits (`head_logits`).
- Norms: the reference freezes all batch norms in evaluation mode (`model.frozen_norms`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from cfmlc_jax.causal.mechanisms import MECHANISMS, SHAPE, TEXTURE
from cfmlc_jax.classify.update import Objective
from cfmlc_jax.models.classifier import Outputs

# Names of the terms of the loss.
LOSSES = ("loss_real", *(f"loss_{name}" for name in MECHANISMS))


@dataclass(frozen=True)
class InvariantObjective(Objective):
    """What an invariant classifier minimises (`loss_parts`); its `loss` gives one value per image, [b]."""

    def terms(self, outputs: Outputs, batch: dict) -> dict:
        """The terms of `loss_parts`."""
        return loss_parts(outputs, batch, loss=self.loss)

    def weights(self, batch: dict) -> dict:
        """The numbers of images of each term: real ones, and generated ones."""
        generated = batch["counterfactual"].sum()
        return {name: len(batch["labels"]) - generated if name == LOSSES[0] else generated for name in LOSSES}


def loss_parts(outputs: Outputs, batch: dict, *, loss: Callable) -> dict:
    """The terms of the loss, scalars by `LOSSES`; training minimises their sum.

    "loss_real" is the mean over real images of the loss of the mean logits. The others are the means over generated
    images of the loss of a mechanism's logits with that mechanism's label. A mean over no image is 0.

    Args:
        outputs: of the classifier for the training views.
        batch: with "labels" [b, k], "counterfactual" bool [b], and "mechanisms", int32 [b] by name.
        loss: a function of logits and labels, two [b, k] -> [b], that takes each image by itself.
    """
    generated, num_classes = batch["counterfactual"], batch["labels"].shape[1]
    parts = {"loss_real": _mean(loss(outputs.whole[:, 0], batch["labels"]), ~generated)}
    for name in MECHANISMS:
        labels = jax.nn.one_hot(batch["mechanisms"][name], num_classes)
        parts[f"loss_{name}"] = _mean(loss(outputs.mechanisms[name][:, 0], labels), generated)
    return parts


def head_logits(outputs: Outputs) -> dict:
    """The logits [b, k] of each head, and "shape_texture", the mean of two; {} without such heads."""
    if outputs.mechanisms is None:
        return {}
    logits = {name: outputs.mechanisms[name][:, 0] for name in MECHANISMS}
    return logits | {"shape_texture": (logits[SHAPE] + logits[TEXTURE]) / 2}


def _mean(values, chosen):
    """The mean of the chosen values, two [b] -> scalar; 0 if there are none."""
    return jnp.where(chosen, values, 0).sum() / jnp.maximum(chosen.sum(), 1)
