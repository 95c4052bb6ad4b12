"""Losses in float32, one file per family; the caller reduces them to a scalar."""

from cfmlc_jax.losses.asymmetric import asymmetric_loss
from cfmlc_jax.losses.catalogue import LOSSES, TASKS, batch_weight, create, known_only
from cfmlc_jax.losses.generative import (
    absolute_error,
    background_size,
    binary_entropy,
    critic_cost,
    generator_cost,
    mask_size,
)
from cfmlc_jax.losses.perceptual import content, gram, style
from cfmlc_jax.losses.softmax import class_weights, cross_entropy, focal, weighted_cross_entropy

__all__ = [
    "LOSSES",
    "TASKS",
    "absolute_error",
    "asymmetric_loss",
    "background_size",
    "batch_weight",
    "binary_entropy",
    "class_weights",
    "content",
    "create",
    "critic_cost",
    "cross_entropy",
    "focal",
    "generator_cost",
    "gram",
    "known_only",
    "mask_size",
    "style",
    "weighted_cross_entropy",
]
