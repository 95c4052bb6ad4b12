"""The system that trains the class branch of a detector on stored regions (Tang et al., NeurIPS 2020, on LVIS).

One step: the heads of all stages on all regions of a batch; the weighted sum of the stages' cross-entropies, each a mean
over the regions that have a label; one optimiser step; then the mean feature of each stage, over regions with an object.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cfmlc_jax import losses
from cfmlc_jax.engine.system import Update
from cfmlc_jax.models.heads import box
from cfmlc_jax.optim.build import hyperparameters

# Labels number the columns of logits: k is the background.
BACKGROUND = "last"
SELECTION = "AP"


class RegionSystem:
    """The heads of a cascade in training, as an `engine.system.System`.

    `learned` is {"variables": {"params", "batch_stats"}, "opt_state"}; "batch_stats" has the mean feature of each stage.
    A batch is {"features": [b, r, s, …], "labels": int32 [b, r, s]} (`data.regions.sampling.train_batches`).

    Args:
        heads: of the cascade.
        sample_shape: [1, s, …] of features.
        rows: k + 1.
        optimizer: an optax transformation with `hyperparameters`.
        weights: of the stages' losses, s numbers.
        counted: whose features are averaged (`box.mean_feature_after`); None: the heads have no mean feature.
        momentum: of the mean feature.
        measure: a function of the variables and `poll` -> metrics; None for a system that is never validated.
    """

    def __init__(
        self,
        heads: box.Cascade,
        sample_shape: tuple[int, ...],
        rows: int,
        optimizer: optax.GradientTransformation,
        *,
        weights: tuple[float, ...],
        counted: str | None,
        momentum: float,
        measure: Callable[[Any, Callable[[], None]], dict[str, float]] | None = None,
    ):
        self._heads, self._sample_shape, self._rows = heads, sample_shape, rows
        self._optimizer, self._weights, self._measure = optimizer, weights, measure
        self._counted, self._momentum = counted, momentum
        names = [f"loss_{box.stage_name(i)}" for i in range(len(weights))]
        self._names = names if len(names) > 1 else []
        self.values = ("loss", *self._names, "grad_norm")
        self.selection = "" if measure is None else SELECTION

    def init(self, key) -> dict[str, Any]:
        """Random weights, mean features of zero, and the optimiser's initial state."""
        variables = initial_variables(self._heads, self._sample_shape, key)
        return {"variables": variables, "opt_state": self._optimizer.init(variables["params"])}

    def update(self, learned, batch, key, step) -> Update:
        """One optimiser step, and the new mean features."""
        features = in_float32(batch["features"])
        features = features.reshape(-1, *features.shape[2:])
        labels = batch["labels"].reshape(-1, len(self._weights))
        params, statistics = (learned["variables"][name] for name in ("params", "batch_stats"))

        def loss_of(params):
            outputs: Any = self._heads.apply({"params": params, "batch_stats": statistics}, features)
            by_stage = [
                _mean_loss(output.factual, labels[:, i], self._rows) for i, output in enumerate(outputs)
            ]
            loss = sum(weight * each for weight, each in zip(self._weights, by_stage, strict=True))
            return loss, (by_stage, [output.features for output in outputs])

        (loss, (by_stage, classified)), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        counted = self._counted
        if counted is not None:
            statistics = {
                box.stage_name(i): self._mean_feature_after(
                    statistics[box.stage_name(i)], features, labels[:, i], counted
                )
                for i, features in enumerate(classified)
            }
        updates, opt_state = self._optimizer.update(gradient, learned["opt_state"], params)
        variables = {"params": optax.apply_updates(params, updates), "batch_stats": statistics}
        return Update(
            learned={"variables": variables, "opt_state": opt_state},
            values={
                "loss": loss,
                **dict(zip(self._names, by_stage)),
                "grad_norm": optax.tree.norm(gradient),
            },
            watched=[("batch_stats", statistics), ("loss", by_stage), ("gradient", gradient)],
        )

    def split(self, learned) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two dicts: the variables, for prediction; and the optimiser's state."""
        return {"variables": learned["variables"]}, {"opt_state": learned["opt_state"]}

    def readings(self, learned) -> dict[str, Any]:
        """The learning rate and momentum of the last step."""
        return hyperparameters(learned["opt_state"])

    def validate(self, learned, poll) -> dict[str, dict[str, float]]:
        """Average precision of the raw weights."""
        if self._measure is None:
            raise ValueError("this system was built without a validation")
        return {"weights": self._measure(learned["variables"], poll)}

    def _mean_feature_after(self, statistics, features, labels, counted: str):
        after = box.mean_feature_after(
            statistics["fc_cls"]["mean_feature"],
            features,
            labels,
            background=BACKGROUND,
            rows=self._rows,
            counted=counted,
            momentum=self._momentum,
        )
        return {"fc_cls": {"mean_feature": after}}


def initial_variables(heads: box.Cascade, sample_shape: tuple[int, ...], key) -> dict[str, Any]:
    """{"params", "batch_stats"} of untrained heads."""
    variables = heads.init(key, jnp.zeros(sample_shape, jnp.float32))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def in_float32(features):
    """Features as the heads compute with them; records have them in float16 to be small."""
    return features.astype(jnp.float32)


def _mean_loss(logits, labels, rows):
    """Mean cross-entropy of the regions that have a label; 0 if none has."""
    # A negative label has no column, so that its loss is 0.
    by_region = losses.cross_entropy(logits, jax.nn.one_hot(labels, rows))
    return by_region.sum() / jnp.maximum((labels >= 0).sum(), 1)
