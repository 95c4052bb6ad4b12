"""Scores of whole splits, every image exactly once: for validation and for evaluation."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify import deconfound, pat
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.update import in_unit_range
from cfmlc_jax.data.pipeline import evaluation_batches, why_unreadable
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.step import gather
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.predictions import null_name
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import WEIGHTS


def compiled_scores(
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
        return logits | {null_name(kind): jnp.broadcast_to(nulls[kind], shape) for kind in kinds}

    options = meshes.compiler_options(mesh)
    return jax.jit(score, out_shardings=meshes.replicated(mesh), compiler_options=options)


def score_step(config, parts: Parts, kinds: Iterable[str]) -> jax.stages.Wrapped:
    """`compiled_scores` of a configuration's classifier, with the counterfactuals of these kinds."""
    return compiled_scores(
        parts.model,
        parts.patching["evaluate"],
        parts.pooling,
        kinds=tuple(kinds),
        null=config.effect.null,
        mesh=parts.mesh,
    )


def score_split(
    parts: Parts, score: Callable, model: dict, source: Source, *, batch_size: int
) -> dict[str, Scores]:
    """Scores of the raw and of the averaged weights on a split, read once for both (`score_readable`)."""
    return score_readable(parts, score, model, source, batch_size=batch_size)[0]


def score_readable(
    parts: Parts,
    score: Callable,
    model: dict,
    source: Source,
    *,
    batch_size: int,
    unreadable: Unreadable | None = None,
    poll: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Scores], Source]:
    """Scores of the raw and of the averaged weights on a split, read once for both, and what was scored.

    That is the split itself, or with `parts.reading.skip` those of its images that can be read.

    Args:
        parts: mesh, reading and transforms.
        score: a compiled `score_step`.
        model: {"variables", "average", "mean_colour"}.
        source: the split.
        batch_size: images, over all devices.
        unreadable: takes note of the images that are left out.
        poll: called before every batch.

    Raises:
        InputError: an image that cannot be read, or none that can.
    """
    batches = evaluation_batches(
        source, parts.transforms["evaluate"], batch_size=batch_size, reading=parts.reading
    )
    variables = {"weights": model["variables"], "average": model["average"]}
    outputs: dict[str, list] = {name: [] for name in WEIGHTS}
    positions = []
    for batch in batches:
        poll()
        on_devices = meshes.to_devices(batch, parts.mesh)
        for name in WEIGHTS:
            outputs[name].append(score(variables[name], model["mean_colour"], on_devices["views"]))
        positions.append(gather(on_devices["index"], parts.mesh))
    order, kept = _places(np.concatenate([np.asarray(p) for p in positions]))
    if len(kept) < len(source):
        assert parts.reading.skip, "an image was not scored"
        source = _readable(parts, source, kept, unreadable)
    return {name: _scores(outputs[name], order, source.labels) for name in WEIGHTS}, source


def _readable(parts, source, kept, unreadable) -> Source:
    """The images that were scored; the others are noted."""
    if unreadable is not None:
        unreadable.add(np.setdiff1d(np.arange(len(source)), kept))
    if not len(kept):
        reason = why_unreadable(source, parts.transforms["evaluate"], 0)
        raise InputError(f"none of the {len(source)} images can be read, the first: {reason}")
    return Selected(source, kept)


def _scores(batches, order, labels):
    """What the score step gave for all batches, in the source's order."""
    arrays = {
        name: np.concatenate([np.asarray(batch[name]) for batch in batches])[order] for name in batches[0]
    }
    attention, cosine = arrays.pop("attention", None), arrays.pop("cosine", None)
    if attention is not None:
        # The largest array of all by far, and good for its softmax only.
        attention = attention.astype(np.float16)
    return Scores(logits=arrays, labels=labels, attention=attention, cosine=cosine)


def _places(positions):
    """Where each image's row is among the gathered ones, and the images; blank records (−1) are nowhere."""
    rows = np.flatnonzero(positions >= 0)
    images, places = np.unique(positions[rows], return_index=True)
    assert len(images) == len(rows), "an image was scored twice"
    return rows[places], images
