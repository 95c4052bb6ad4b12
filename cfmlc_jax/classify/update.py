"""The system of a classifier, for the engine (`engine.system.System`): initial weights, one step, validation.

One step: scale the views to [0, 1]; mask patches if configured; one forward pass of all views; the loss of
the objective (`Objective.terms`); one optimiser step; then update the averaged (EMA) weights, the mean colour and, for a
de-confounded head, the mean feature. With micro-batches, forward and backward pass are of one of them at a time
(`engine.accumulation`), and everything else is as of the whole batch.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cfmlc_jax.causal.patches import Pooling
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.deconfound import MeanFeature
from cfmlc_jax.classify.masking import Masking
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.removing import Removal
from cfmlc_jax.engine import accumulation
from cfmlc_jax.engine.system import Update
from cfmlc_jax.models.classifier import Classifier, Outputs
from cfmlc_jax.optim import ema, frozen
from cfmlc_jax.optim.build import hyperparameters

# Folded into the step's key for dropout in micro-batches, each of which folds its number into that. Dropout in a whole
# batch uses the step's key itself. `masking` and `removing` have others.
DROPOUT = 2


@dataclass(frozen=True)
class Objective:
    """What training minimises.

    loss: a function of logits and labels, two [b, k] -> scalar.
    names: of the terms of the loss (`pat.loss_names`).
    patching: where the patches of training come from.
    pooling: of patch evidence to one logit per class.
    weight: a function of labels [b, k] -> scalar, if the terms are weighted means over images: the sum of the images'
        weights. None: the terms are sums over images.
    masking: of patches of training images; None: none.
    removal: of classes from training images; None: none.
    distil: the whole-image branch learns from the patches.
    """

    loss: Callable
    names: tuple[str, ...]
    patching: Whole
    pooling: Pooling
    weight: Callable | None = None
    masking: Masking | None = None
    removal: Removal | None = None
    distil: bool = False

    def terms(self, outputs: Outputs, batch: dict[str, Any]) -> dict[str, Any]:
        """The terms of the loss, scalars by `names`; training minimises their sum."""
        return pat.loss_parts(
            outputs,
            batch["labels"],
            loss=self.loss,
            patching=self.patching,
            pooling=self.pooling,
            distil=self.distil,
        )

    def weights(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The sums of the images' weights in each term that is a weighted mean over images, scalars by name.

        A term of a batch is the mean of its micro-batches' by these weights. It is their sum for terms without a weight.
        """
        return {} if self.weight is None else dict.fromkeys(self.names, self.weight(batch["labels"]))


@dataclass(frozen=True)
class Validation:
    """How a classifier is validated.

    selection: the metric that chooses the best checkpoint.
    measure: a function of the "model" item and `poll` -> metrics by set of weights.
    """

    selection: str
    measure: Callable[[dict[str, Any], Callable[[], None]], dict[str, dict[str, float]]]


class ClassifierSystem:
    """A classifier in training, as an `engine.system.System`.

    `learned` has the entries

    - "variables": {"params", "batch_stats"}, the raw weights;
    - "average": the same tree, averaged over steps (EMA);
    - "mean_colour": float32 [3] in [0, 1], the mean pixel of all whole views so far;
    - "opt_state": of the optimiser.

    A batch is {"views": [b, v, s, s, 3] (see `in_unit_range`), "labels": float32 [b, k]}, and what else the objective
    reads (`data.pipeline.train_batches`). The loss is computed over the global batch, batch statistics over each of its
    norm groups. Parameters that the model freezes get a zero gradient; the optimiser must not decay them.

    Args:
        model: the classifier.
        sample_shape: [1, v, s, s, 3] of the host's training views.
        objective: what to minimise.
        optimizer: an optax transformation with `hyperparameters`.
        ema_decay: of the averaged weights.
        mean_feature: updates the mean feature, for heads that have one.
        micro_batches: number of parts of a batch that are computed one after the other.
        norm_groups: number of norm groups of a batch, a multiple of `micro_batches`: each micro-batch is of whole
            groups, and the model must have the number of one micro-batch. None: images do not depend on each other.
        validation: None for a system that is never validated.
    """

    def __init__(
        self,
        model: Classifier,
        sample_shape: Sequence[int],
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        ema_decay: float,
        mean_feature: MeanFeature | None = None,
        micro_batches: int = 1,
        norm_groups: int | None = None,
        validation: Validation | None = None,
    ):
        self._model, self._sample_shape, self._objective = model, tuple(sample_shape), objective
        self._optimizer, self._ema_decay, self._mean_feature = optimizer, ema_decay, mean_feature
        self._micro_batches, self._norm_groups = micro_batches, norm_groups
        self._validation = validation
        self.values = ("loss", *objective.names, "grad_norm")
        self.selection = "" if validation is None else validation.selection

    def init(self, key) -> dict[str, Any]:
        """Random weights, averaged weights equal to them, and the optimiser's initial state."""
        model = initial_model(self._model, self._sample_shape, key)
        return model | {"opt_state": self._optimizer.init(model["variables"]["params"])}

    def update(self, learned, batch, key, step) -> Update:
        """One optimiser step, and the new batch statistics, averaged weights and mean colour."""
        views = batch["views"]
        colour = in_unit_range(views[:, 0]).mean(axis=(0, 1, 2))
        params, statistics = (learned["variables"][name] for name in ("params", "batch_stats"))
        weights = self._objective.weights(batch)
        masking, removal = self._objective.masking, self._objective.removal

        def gradient_of(number, part, statistics_after):
            """The gradient of a micro-batch; the statistics; and its share in the terms, with its pooled features."""
            part, patch, drawn = part
            images = in_unit_range(part["views"])
            if masking is not None:
                # The mean colour of the steps so far; in the first step it is black.
                images = masking.apply(images, patch, learned["mean_colour"])
            if removal is not None:
                find: Any = functools.partial(self._model.apply, learned["average"], train=False)
                images, labels = removal.apply(find, images, part["labels"], drawn, step)
                part = part | {"labels": labels}

            def loss_of(params):
                outputs, updated = self._model.apply(
                    {
                        "params": frozen.stop_frozen_gradients(params, self._model.frozen),
                        "batch_stats": statistics,
                    },
                    self._objective.patching.inputs(images),
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": self._dropout_key(key, number)},
                )
                terms = self._share(self._objective.terms(outputs, part), part, weights)
                pooled = outputs.features["pooled"][:, 0] if self._mean_feature else None
                return sum(terms.values()), (terms, updated.get("batch_stats", {}), pooled)

            gradient, (terms, updated, pooled) = jax.grad(loss_of, has_aux=True)(params)
            # The running statistics follow the first norm group, which is in the first micro-batch.
            after = jax.tree.map(lambda new, old: jnp.where(number == 0, new, old), updated, statistics_after)
            return gradient, after, (terms, pooled)

        group = 1 if self._norm_groups is None else len(views) // self._norm_groups
        gradient, batch_stats, (terms, pooled) = accumulation.accumulate(
            gradient_of,
            params,
            statistics,
            (batch, masking and masking.draw(key, views), removal and removal.draw(key, batch["labels"])),
            number=self._micro_batches,
            group=group,
        )
        parts = {name: by_part.sum(axis=0) for name, by_part in terms.items()}
        if self._mean_feature:
            batch_stats = self._mean_feature.update(batch_stats, pooled, step)
        updates, opt_state = self._optimizer.update(gradient, learned["opt_state"], params)
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": batch_stats}
        return Update(
            learned={
                "variables": variables,
                "average": ema.update(learned["average"], variables, self._ema_decay),
                "mean_colour": _running_mean(learned["mean_colour"], colour, step),
                "opt_state": opt_state,
            },
            values={"loss": sum(parts.values()), **parts, "grad_norm": optax.tree.norm(gradient)},
            # In the order of the forward pass, so that the first layer that overflows is the one reported.
            watched=[("batch_stats", batch_stats), ("loss", parts), ("gradient", gradient)],
        )

    def split(self, learned) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two dicts: everything but the optimiser's state, for prediction; and the optimiser's state."""
        model = {name: learned[name] for name in ("variables", "average", "mean_colour")}
        return model, {"opt_state": learned["opt_state"]}

    def readings(self, learned) -> dict[str, Any]:
        """The learning rate and momentum of the last step."""
        return hyperparameters(learned["opt_state"])

    def validate(self, learned, poll) -> dict[str, dict[str, float]]:
        """Metrics on the validation split, of the raw and of the averaged weights."""
        if self._validation is None:
            raise ValueError("this system was built without a validation")
        model, _ = self.split(learned)
        return self._validation.measure(model, poll)

    def _dropout_key(self, key, number):
        if self._micro_batches == 1:
            return key
        return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), number)

    def _share(self, terms, part, weights):
        """What a micro-batch adds to the terms of the batch, whose weights these are."""
        if self._micro_batches == 1:
            return terms
        # A batch without a weight has terms of 0.
        share = {
            name: weight / jnp.maximum(weights[name], 1)
            for name, weight in self._objective.weights(part).items()
        }
        return {name: term * share[name] if name in share else term for name, term in terms.items()}


def initial_model(model: Classifier, sample_shape: Sequence[int], key) -> dict[str, Any]:
    """The initial "model" item of a checkpoint: {"variables", "average", "mean_colour"}."""
    variables = model.init(key, jnp.zeros(sample_shape, jnp.float32), train=False)
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return {
        "variables": variables,
        "average": jax.tree.map(jnp.copy, variables),
        "mean_colour": jnp.zeros(3, jnp.float32),
    }


def in_unit_range(views):
    """Views in [0, 1], the models' input: uint8 pixels are scaled to float32, float views stay unchanged."""
    if jnp.issubdtype(views.dtype, jnp.floating):
        return views
    return views.astype(jnp.float32) / 255


def _running_mean(mean, new, count):
    return mean + (new - mean) / (count + 1)
