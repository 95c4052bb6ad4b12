"""Scores of whole splits, every image exactly once: for validation and for evaluation."""

from collections.abc import Callable, Iterable

import numpy as np

from cfmlc_jax.classify import step as steps
from cfmlc_jax.classify.build import Setup
from cfmlc_jax.data.pipeline import evaluation_batches, why_unreadable
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import WEIGHTS


def score_step(config, parts: Setup, kinds: Iterable[str]):
    """The compiled scores of one batch, with the counterfactuals of these kinds."""
    return steps.score_step(
        parts.model,
        parts.method,
        kinds=tuple(kinds),
        null=config.effect.null,
        patches=parts.patches["evaluate"],
        mesh=parts.mesh,
    )


def score_split(
    parts: Setup, score: Callable, model: dict, source: Source, *, batch_size: int
) -> dict[str, Scores]:
    """Scores of the raw and of the averaged weights on a split, read once for both (`score_readable`)."""
    return score_readable(parts, score, model, source, batch_size=batch_size)[0]


def score_readable(
    parts: Setup,
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
        source, parts.views_of["evaluate"], batch_size=batch_size, reading=parts.reading
    )
    variables = {"weights": model["variables"], "average": model["average"]}
    outputs: dict[str, list] = {name: [] for name in WEIGHTS}
    positions = []
    for batch in batches:
        poll()
        on_devices = meshes.to_devices(batch, parts.mesh)
        for name in WEIGHTS:
            outputs[name].append(score(variables[name], model["mean_colour"], on_devices["views"]))
        positions.append(steps.gather(on_devices["index"], parts.mesh))
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
        reason = why_unreadable(source, parts.views_of["evaluate"], 0)
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
