"""What an exported file computes: images of the model's size to probabilities, patches cut inside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import patch_weights
from cfmlc_jax.classify import build, deconfound, invariant, pat
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.classify.patching import HostViews, Whole
from cfmlc_jax.classify.update import in_unit_range
from cfmlc_jax.export.patches import host_patches
from cfmlc_jax.models import catalogue
from cfmlc_jax.results.predictions import EFFECTS, Prediction

PATCH_WEIGHTS = "patch_weights"


def function(opened: Opened, alpha: float) -> Callable[[Any, Any], dict[str, Any]]:
    """A function of weights and images uint8 [b, s, s, 3] -> float32 arrays by name, s the side of the model's views.

    "whole", "patch", "combined", …: probabilities [b, k] of the predictions that need no second forward pass;
    "tde_feature" with strength alpha for heads with a mean feature. "patch_weights" [b, p, k]: the share of each
    patch in a class's evidence. Without patches there is neither "patch" nor "patch_weights".

    Args:
        opened: the classifier, whose variables are the weights.
        alpha: strength of the total direct effect.
    """
    model, patching, pooling = opened.parts.model, opened.parts.patching["evaluate"], opened.parts.pooling
    probabilities = jax.nn.softmax if opened.config.task == "single_label" else jax.nn.sigmoid

    def compute(variables, images):
        outputs: Any = model.apply(variables, patching.inputs(_views(images, patching)), train=False)
        logits = pat.predict(outputs, patching, pooling) | invariant.head_logits(outputs)
        evidence = patching.evidence(outputs)
        if has_mean_feature(opened):
            null = deconfound.counterfactual(
                outputs, patch_weight=0.0 if evidence is None else pooling.weight
            )
            logits["tde_feature"] = effects.total_direct_effect(logits["combined"], null, alpha)
        arrays = {name: probabilities(rows.astype(jnp.float32)) for name, rows in logits.items()}
        if evidence is not None:
            arrays[PATCH_WEIGHTS] = patch_weights(pooling.focus(*evidence))
        return arrays

    return compute


def has_mean_feature(opened: Opened) -> bool:
    """Whether the head keeps a mean feature, so that "tde_feature" is among the outputs."""
    return catalogue.HEADS[opened.config.model.head].has_mean


def described(opened: Opened, alpha: float) -> dict[str, str]:
    """What each output of `function` is, in words, by name."""
    images = jax.ShapeDtypeStruct((1, *opened.parts.sample_shape("evaluate")[2:]), np.uint8)
    variables = build.model_item(opened.config, opened.parts)["average"]
    names = jax.eval_shape(function(opened, alpha), variables, images)
    return {name: _in_words(name, alpha) for name in names}


def _in_words(name, alpha):
    if name == PATCH_WEIGHTS:
        return "share of each patch in the evidence of each class [b, p, k]; the largest is the pivot patch's"
    return f"probabilities [b, k], {prediction(name, alpha).title}"


def prediction(output: str, alpha: float) -> Prediction:
    """The prediction whose probabilities an output has."""
    return Prediction(output, alpha if output in EFFECTS else None)


def _views(images, patching: Whole):
    """The host's views of images that have the model's size already: [b, v, s, s, 3] in [0, 1]."""
    whole = in_unit_range(images)[:, None]
    if not isinstance(patching, HostViews) or patching.host_grid is None:
        return whole
    patches = host_patches(images.astype(jnp.float32), patching.host_grid, patching.overlap)
    return jnp.concatenate([whole, patches / 255], axis=1)
