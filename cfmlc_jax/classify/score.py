"""The compiled scores of one batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify import deconfound, pat
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.update import in_unit_range
from cfmlc_jax.engine import mesh as meshes


def score_step(
    model, patching: Whole, pooling: Pooling, *, kinds: Sequence[str], null: str, mesh: jax.sharding.Mesh
) -> jax.stages.Wrapped:
    """A compiled (variables, mean_colour, views) -> logits by name, each [b, k] on every device.

    "whole", "patch", "combined" as in `pat.predict`, and "null_<kind>", the counterfactual logits, for
    every kind of total direct effect: "whole" and "pivot" (`pat.counterfactuals`), "feature"
    (`deconfound.counterfactual`). Where there are patches, "attention" [b, p, k] too: the logits whose
    softmax over patches says where a class has its evidence. With the kind "feature", "cosine" [b]: of
    the features with the mean feature.
    """

    def score(variables, mean_colour, views):
        views = in_unit_range(views)

        def apply(inputs):
            return model.apply(variables, inputs, train=False)

        outputs = apply(patching.inputs(views))
        logits = pat.predict(outputs, patching, pooling)
        evidence = patching.evidence(outputs)
        if evidence is not None:
            logits["attention"] = pooling.focus(*evidence)
        nulls = {}
        if {"whole", "pivot"} & set(kinds):
            blank = effects.null_images(views[:, 0], null, mean_colour)
            nulls = pat.counterfactuals(
                apply, views, outputs, blank, kinds, patching=patching, pooling=pooling
            )
        if "feature" in kinds:
            nulls["feature"] = deconfound.counterfactual(outputs, with_patches=evidence is not None)
            logits["cosine"] = outputs.cosine[:, 0]
        shape = logits["combined"].shape
        return logits | {f"null_{kind}": jnp.broadcast_to(nulls[kind], shape) for kind in kinds}

    options = meshes.compiler_options(mesh)
    return jax.jit(score, out_shardings=meshes.replicated(mesh), compiler_options=options)
