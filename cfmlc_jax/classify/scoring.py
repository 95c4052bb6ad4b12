"""Scores a split, each image exactly once, for validation and evaluation."""

from collections.abc import Callable, Collection, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify import deconfound, invariant, pat
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
    """A compiled function (variables, mean_colour, views) -> arrays by name, replicated on every device.

    - "whole", "patch", "combined": factual logits [b, k] (`pat.predict`).
    - "shape", "texture", "background", "shape_texture", for an invariant classifier: logits [b, k] of its heads
      (`invariant.head_logits`).
    - "null_<kind>": counterfactual logits [b, k] for each of `kinds`: "feature" by
      `deconfound.counterfactual`, all others by `pat.counterfactuals`.
    - "attention", if there are patches: logits [b, p, k] whose softmax over patches is the weight of each patch
      in a class's evidence.
    - "cosine", for the kind "feature": [b], of the features with the mean feature.
    """

    def score(variables, mean_colour, views):
        views = in_unit_range(views)

        def apply(inputs):
            return model.apply(variables, inputs, train=False)

        outputs = apply(patching.inputs(views))
        logits = pat.predict(outputs, patching, pooling) | invariant.head_logits(outputs)
        evidence = patching.evidence(outputs)
        if evidence is not None:
            logits["attention"] = pooling.focus(*evidence)
        nulls = {}
        if set(kinds) - {"feature"}:
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
    """`compiled_scores` for the classifier of a configuration, with counterfactuals of these kinds."""
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
    """The scores of the raw and the averaged weights on a split, by "weights" and "average" (`score_readable`)."""
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
    weights: Collection[str] = tuple(WEIGHTS),
) -> tuple[dict[str, Scores], Source]:
    """The scores by "weights" (raw) and "average" (EMA), and the source of the images that were scored.

    The images are read once for both sets of weights. The second result is `source` itself or, with
    `parts.reading.skip`, its readable images.

    Args:
        parts: mesh, reading and transforms.
        score: from `score_step`.
        model: {"variables", "average", "mean_colour"}.
        source: the split.
        batch_size: images, over all devices.
        unreadable: records the images that cannot be read.
        poll: called before every batch.
        weights: the sets of weights to score.

    Raises:
        InputError: an image cannot be read; with `parts.reading.skip`, none can.
    """
    batches = evaluation_batches(
        source, parts.transforms["evaluate"], batch_size=batch_size, reading=parts.reading
    )
    variables = {"weights": model["variables"], "average": model["average"]}
    outputs: dict[str, list] = {name: [] for name in weights}
    positions = []
    for batch in batches:
        poll()
        on_devices = meshes.to_devices(batch, parts.mesh)
        for name in weights:
            outputs[name].append(score(variables[name], model["mean_colour"], on_devices["views"]))
        positions.append(gather(on_devices["index"], parts.mesh))
    order, kept = _places(np.concatenate([np.asarray(p) for p in positions]))
    if len(kept) < len(source):
        assert parts.reading.skip, "an image was not scored"
        source = _readable(parts, source, kept, unreadable)
    return {name: _scores(outputs[name], order, source.labels) for name in weights}, source


def _readable(parts, source, kept, unreadable) -> Source:
    """The source of the images that were scored; records the other images in `unreadable`."""
    if unreadable is not None:
        unreadable.add(np.setdiff1d(np.arange(len(source)), kept))
    if not len(kept):
        reason = why_unreadable(source, parts.transforms["evaluate"], 0)
        raise InputError(f"none of the {len(source)} images can be read, the first: {reason}")
    return Selected(source, kept)


def _scores(batches, order, labels):
    """The outputs of all batches as one `Scores`, in the order of the source."""
    arrays = {
        name: np.concatenate([np.asarray(batch[name]) for batch in batches])[order] for name in batches[0]
    }
    attention, cosine = arrays.pop("attention", None), arrays.pop("cosine", None)
    if attention is not None:
        # By far the largest array; only its softmax is used.
        attention = attention.astype(np.float16)
    return Scores(logits=arrays, labels=labels, attention=attention, cosine=cosine)


def _places(positions):
    """The row of each image among the gathered rows, and the image numbers. Padding (−1) is left out."""
    rows = np.flatnonzero(positions >= 0)
    images, places = np.unique(positions[rows], return_index=True)
    assert len(images) == len(rows), "an image was scored twice"
    return rows[places], images
