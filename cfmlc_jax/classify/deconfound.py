"""De-confounded training and TDE inference for long tails (Tang et al., NeurIPS 2020, arXiv:2009.12991).

The optimiser's momentum drifts features along their mean, towards the frequent classes. Training divides
products by norms that hold this confounder fixed; inference takes out what the logits owe to the mean
feature.

- Head: `causal_norm` (or its relatives `cosine`, `capsule`) in `models.heads`, on whole views.
- Extra state: the mean feature of training, in "batch_stats"; `MeanFeature` moves it after each step.
- Effect: the logits' part along the mean feature (`counterfactual`); its strength alpha is chosen after
  training.
- Second stages of the comparisons: `with_tau_norm` rescales a trained classifier's weights (tau-norm);
  learnable weight scaling (head `lws`) is trained from a first stage's run (`classify.finetune`).
- Recipe: `config.recipes.long_tailed`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.causal import effects, mean_feature
from cfmlc_jax.models.classifier import Outputs
from cfmlc_jax.models.heads.pooled import tau_norm

PLACE = ("head", "whole", "mean_feature")
_KERNEL = ("params", "head", "whole", "kernel")


class MeanFeature:
    """The moving mean of whole views' pooled features, as training updates it.

    Args:
        momentum: step -> share of the mean feature that the step keeps.
    """

    def __init__(self, momentum: Callable):
        self._momentum = momentum

    def update(self, batch_stats: dict[str, Any], pooled, step) -> dict[str, Any]:
        """Batch statistics with the mean feature after this batch (`causal.mean_feature.moving_sum`).

        Args:
            batch_stats: after the batch, with the mean feature from before.
            pooled: features [b, d] of the whole views.
            step: int32, updates done.
        """
        flat = flatten_dict(batch_stats)
        moved = mean_feature.moving_sum(flat[PLACE], pooled, self._momentum(step))
        return unflatten_dict(flat | {PLACE: moved})


def counterfactual(outputs: Outputs, *, with_patches: bool):
    """The mean feature's part in the combined logits, [b, k]. It takes no second forward pass.

    Args:
        outputs: factual, of a head with a mean feature.
        with_patches: combined logits have a share of patches, which owe nothing to the mean feature.
    """
    of_whole = outputs.counterfactual[:, 0]
    return effects.combine(of_whole, jnp.zeros_like(of_whole)) if with_patches else of_whole


def with_tau_norm(model: dict[str, Any], tau: float) -> dict[str, Any]:
    """A checkpoint's "model" item whose linear classifier has the weights w / ‖w‖^tau; 0 leaves them."""
    if not tau:
        return model
    return model | {name: _tau_normed(model[name], tau) for name in ("variables", "average")}


def _tau_normed(variables, tau):
    flat = flatten_dict(variables, keep_empty_nodes=True)
    return unflatten_dict(flat | {_KERNEL: tau_norm(flat[_KERNEL], tau)})
