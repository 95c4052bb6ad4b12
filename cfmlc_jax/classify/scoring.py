"""Scores a split, each image exactly once, for validation and evaluation."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.causal import effects
from cfmlc_jax.causal.patches import Pooling, pivot
from cfmlc_jax.classify import deconfound, invariant, opening, ownership, pat
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.update import in_unit_range
from cfmlc_jax.data.evaluation import evaluation_batches, why_unreadable
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.step import gather
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.results.predictions import null_name
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import WEIGHTS

# Counterfactuals that are not of a null image.
WITHOUT_NULL = {"feature", "owner"}


class Lender(NamedTuple):
    """Another classifier, whose patches are cells of a map, and say which pixels a class owns."""

    model: Classifier
    variables: Any
    patching: Whole
    pooling: Pooling


class Score:
    """Scores one batch: (variables, mean_colour, views) -> arrays by name, each split over the devices by images.

    - "whole", "patch", "combined": factual logits [b, k] (`pat.predict`).
    - "shape", "texture", "background", "shape_texture", for an invariant classifier: logits [b, k] of its heads
      (`invariant.head_logits`).
    - "null_<kind>": counterfactual logits [b, k] for each of `kinds`: "feature" by
      `deconfound.counterfactual`, "owner" by `ownership.without_owners`, all others by `pat.counterfactuals`.
    - "attention", if asked for and if there are patches: logits [b, p, k] whose softmax over patches is the weight
      of each patch in a class's evidence; and "pivot", int32 [b, k], the patch with the most of it.
    - "cosine", for the kind "feature": [b], of the features with the mean feature.

    Args:
        model: the classifier.
        patching: where the patches come from.
        pooling: of patch evidence to one logit per class.
        kinds: of counterfactuals.
        null: what replaces what is removed, a kind of `causal.effects.null_images`.
        mesh: the devices.
        attention: the type of "attention"; None: without it.
        classes: for the kind "owner", the number of classes in each image that lose their pixels.
        lender: for the kind "owner", who says which pixels a class owns; None: the classifier itself.
    """

    def __init__(
        self,
        model: Classifier,
        patching: Whole,
        pooling: Pooling,
        *,
        kinds: Sequence[str],
        null: str,
        mesh: jax.sharding.Mesh,
        attention: DTypeLike | None = None,
        classes: int = 1,
        lender: Lender | None = None,
    ):
        self._mesh = mesh
        with_null = bool(set(kinds) - WITHOUT_NULL)
        self._lent_variables = None if lender is None else lender.variables
        # A null that is the same for all images is scored once, not with every batch.
        self._fixed_null = with_null and null in effects.FIXED_NULLS

        def apply(variables, inputs):
            return model.apply(variables, inputs, train=False)

        def of_null(variables, mean_colour, size):
            blank = effects.null_images(jnp.zeros((1, size, size, 3), jnp.float32), null, mean_colour)
            return pat.of_null(functools.partial(apply, variables), blank, patching=patching, pooling=pooling)

        def owned(lent_variables, views, outputs):
            if lender is None:
                return ownership.owned(outputs, views.shape[2], patching=patching, pooling=pooling)
            inputs = lender.patching.inputs(views[:, :1])
            lent: Any = lender.model.apply(lent_variables, inputs, train=False)
            own_classes, lent_classes = outputs.whole.shape[2], lent.whole.shape[2]
            if own_classes != lent_classes:
                raise InputError(
                    f"the classifier of config.effect.owners has {lent_classes} classes, but the scored one has "
                    f"{own_classes}; give a checkpoint of the same classes"
                )
            return ownership.owned(lent, views.shape[2], patching=lender.patching, pooling=lender.pooling)

        def score(variables, mean_colour, of_fixed_null, lent_variables, views):
            views = in_unit_range(views)
            outputs = apply(variables, patching.inputs(views))
            arrays = pat.predict(outputs, patching, pooling) | invariant.head_logits(outputs)
            shape = arrays["combined"].shape
            evidence = patching.evidence(outputs)
            if attention is not None and evidence is not None:
                arrays["attention"] = pooling.focus(*evidence).astype(attention)
                arrays["pivot"] = pivot(arrays["attention"])
            nulls = {}
            if with_null:
                nulls = pat.counterfactuals(
                    functools.partial(apply, variables),
                    views,
                    outputs,
                    effects.null_images(views[:, 0], null, mean_colour),
                    kinds,
                    patching=patching,
                    pooling=pooling,
                    null=of_fixed_null,
                )
            if "owner" in kinds:
                nulls["owner"] = ownership.without_owners(
                    functools.partial(apply, variables),
                    views,
                    arrays["combined"],
                    mean_colour,
                    owned(lent_variables, views, outputs),
                    classes,
                    patching=patching,
                    pooling=pooling,
                )
            if "feature" in kinds:
                nulls["feature"] = deconfound.counterfactual(
                    outputs, patch_weight=0.0 if evidence is None else pooling.weight
                )
                arrays["cosine"] = outputs.cosine[:, 0]
            return arrays | {null_name(kind): jnp.broadcast_to(nulls[kind], shape) for kind in kinds}

        options = meshes.compiler_options(mesh)
        self._of_null = jax.jit(
            of_null, static_argnums=2, out_shardings=meshes.replicated(mesh), compiler_options=options
        )
        self._score = jax.jit(score, out_shardings=meshes.batch_sharding(mesh), compiler_options=options)

    def __call__(self, variables, mean_colour, views) -> dict[str, jax.Array]:
        """The arrays of a single batch; for many batches see `with_weights`."""
        return self.with_weights(variables, mean_colour, views.shape[2])(views)

    def with_weights(self, variables, mean_colour, size: int) -> Callable[[Any], dict[str, jax.Array]]:
        """The same function of the views alone. What does not depend on them is computed here, once.

        Args:
            variables: of the classifier.
            mean_colour: [3].
            size: side of the views, pixels.
        """
        of_fixed_null = self._of_null(variables, mean_colour, size) if self._fixed_null else None
        return functools.partial(self._score, variables, mean_colour, of_fixed_null, self._lent_variables)

    def trace(self, variables, mean_colour, views) -> jax.stages.Traced:
        """The program of a batch, not compiled yet; the arguments are arrays, or their shapes and shardings."""
        of_fixed_null = None
        if self._fixed_null:
            shapes = self._of_null.eval_shape(variables, mean_colour, views.shape[2])
            of_fixed_null = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(
                    leaf.shape, leaf.dtype, sharding=meshes.replicated(self._mesh)
                ),
                shapes,
            )
        return self._score.trace(variables, mean_colour, of_fixed_null, self._lent_variables, views)


def score_step(config, parts: Parts, kinds: Iterable[str], *, attention: DTypeLike | None = None) -> Score:
    """The `Score` of a configuration's classifier, with counterfactuals of these kinds.

    Raises:
        InputError: the checkpoint `effect.owners` cannot say which pixels a class of this classifier owns.
    """
    kinds = tuple(kinds)
    return Score(
        parts.model,
        parts.patching["evaluate"],
        parts.pooling,
        kinds=kinds,
        null=config.effect.null,
        mesh=parts.mesh,
        attention=attention,
        classes=config.effect.classes,
        lender=_lender(config, parts) if "owner" in kinds and config.effect.owners else None,
    )


def _lender(config, parts: Parts) -> Lender:
    """The classifier of `effect.owners`."""
    place = path_of(config.effect.owners, "config.effect.owners")
    lender = opening.open(checkpoints.find_together(place))
    if not configs.patch_map(lender.config):
        raise InputError(
            f"config.effect.owners {lender.path}: its patches are not cells of a map; give a checkpoint that was "
            "trained with patches.source 'map'"
        )
    lent, wanted = (each.transforms["evaluate"].size for each in (lender.parts, parts))
    if lent != wanted:
        raise InputError(
            f"config.effect.owners {lender.path} has views of {lent} pixels, but the scored classifier has {wanted}; give a "
            "checkpoint with the same views.image_size"
        )
    variables = jax.device_put(lender.model["average"], meshes.replicated(parts.mesh))
    return Lender(lender.parts.model, variables, lender.parts.patching["evaluate"], lender.parts.pooling)


def for_validation(config, parts: Parts) -> Score:
    """The `Score` of validations, which need no counterfactuals."""
    return score_step(config, parts, ())


def for_evaluation(config, parts: Parts) -> Score:
    """The `Score` of the full evaluation."""
    return score_step(config, parts, config.effect.kinds, attention=np.float16)


def views_of(parts: Parts, batch_size: int) -> jax.ShapeDtypeStruct:
    """Shape and sharding of the views of a batch of evaluation."""
    shape = (batch_size, *parts.sample_shape("evaluate")[1:])
    return jax.ShapeDtypeStruct(shape, np.uint8, sharding=meshes.batch_sharding(parts.mesh))


def score_split(
    parts: Parts, score: Score, model: dict, source: Source, *, batch_size: int
) -> dict[str, Scores]:
    """The scores of the raw and the averaged weights on a split, by "weights" and "average" (`score_readable`)."""
    return score_readable(parts, score, model, source, batch_size=batch_size)[0]


def score_readable(
    parts: Parts,
    score: Score,
    model: dict,
    source: Source,
    *,
    batch_size: int,
    unreadable: Unreadable | None = None,
    poll: Callable[[], None] = lambda: None,
    weights: Collection[str] = tuple(WEIGHTS),
    attention: bool = True,
) -> tuple[dict[str, Scores], Source]:
    """The scores by "weights" (raw) and "average" (EMA), and the source of the images that were scored.

    The images are read once for both sets of weights, and scored once if both are equal. The second result is
    `source` itself or, with `parts.reading.skip`, its readable images. The devices hold the outputs of at most
    two batches: those of one are fetched while the next is scored.

    Args:
        parts: mesh, reading and transforms.
        score: from `score_step`.
        model: {"variables", "average", "mean_colour"}.
        source: the split.
        batch_size: images, over all devices.
        unreadable: records the images that cannot be read.
        poll: called before every batch.
        weights: the sets of weights to score.
        attention: fetch the attention, if `score` has it; its pivots are always fetched.

    Raises:
        InputError: an image cannot be read; with `parts.reading.skip`, none can.
    """
    variables = {"weights": model["variables"], "average": model["average"]}
    size = parts.transforms["evaluate"].size
    names = list(weights)
    if len(names) == 2 and _equal(*variables.values()):
        names.pop(0)
    scorers = {name: score.with_weights(variables[name], model["mean_colour"], size) for name in names}
    outputs: dict[str, list] = {name: [] for name in names}
    positions = []
    batches = evaluation_batches(
        source, parts.transforms["evaluate"], batch_size=batch_size, reading=parts.reading
    )
    for rows in _one_behind(_scored(batches, scorers, parts.mesh, attention=attention, poll=poll)):
        positions.append(rows.pop("index"))
        for name in names:
            outputs[name].append(rows[name])
    order, kept = _places(np.concatenate(positions))
    if len(kept) < len(source):
        assert parts.reading.skip, "an image was not scored"
        source = _readable(parts, source, kept, unreadable)
    scores = {name: _scores(outputs.pop(name), order, source.labels) for name in names}
    return {name: scores.get(name, scores[names[-1]]) for name in weights}, source


def _scored(batches, scorers, mesh, *, attention: bool, poll) -> Iterator[dict[str, Any]]:
    """Of each batch the positions in the source, "index", and the outputs by set of weights: arrays on the devices."""
    several = jax.process_count() > 1
    for batch in batches:
        poll()
        on_devices = meshes.to_devices(batch, mesh)
        rows = {"index": on_devices["index"]}
        for name, score in scorers.items():
            rows[name] = score(on_devices["views"])
            if not attention:
                rows[name].pop("attention", None)
        yield gather(rows, mesh) if several else rows


def _one_behind(trees: Iterator[Any]) -> Iterator[Any]:
    """The same trees as numpy arrays. Each is fetched after the next was dispatched, so that devices do not wait."""
    before = None
    for tree in trees:
        if before is not None:
            yield jax.device_get(before)
        before = tree
    if before is not None:
        yield jax.device_get(before)


def _equal(one, other) -> bool:
    """Whether two trees of variables are equal in every bit of every number, as with `optim.ema_decay` 0."""
    # From the end: the head comes last, and differs first.
    leaves = zip(reversed(jax.tree.leaves(one)), reversed(jax.tree.leaves(other)), strict=True)
    return all(bool(jnp.array_equal(*pair)) for pair in leaves)


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
    arrays = {}
    for name in list(batches[0]):
        # Array by array, so that the host does not hold all of them twice.
        arrays[name] = np.concatenate([batch.pop(name) for batch in batches])[order]
    others = {name: arrays.pop(name, None) for name in ("attention", "pivot", "cosine")}
    return Scores(logits=arrays, labels=labels, **others)


def _places(positions):
    """The row of each image among the gathered rows, and the image numbers. Padding (−1) is left out."""
    rows = np.flatnonzero(positions >= 0)
    images, places = np.unique(positions[rows], return_index=True)
    assert len(images) == len(rows), "an image was scored twice"
    return rows[places], images
