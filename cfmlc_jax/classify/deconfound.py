"""De-confounded training and TDE inference for long-tailed data (Tang et al., NeurIPS 2020, arXiv:2009.12991).

Most training images are of a few classes, the head classes. SGD's momentum then has a part that points towards
them, and it moves all features along their mean: a confounder. De-confounded training normalises features
and weights in the classifier's products; TDE inference subtracts the part of the logits that comes from the
mean feature. Where everything is:

- Head (`models.heads.pooled`): `causal_norm`, or `cosine` and `capsule` to compare with, on whole images.
- Equations: `causal.mean_feature`.
- Mean feature: the moving sum of the training features, stored in "batch_stats". `MeanFeature` updates it after
  each step.
- Counterfactual (`counterfactual`): the part of the logits along the mean feature. Its strength alpha is chosen
  after training.
- Two-stage methods to compare with: tau-norm rescales the weights of a trained classifier (`with_tau_norm`);
  learnable weight scaling (head `lws`) is trained from a first run (`classify.finetune`).
- Recipe: `config.recipes.long_tailed`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.causal import effects, mean_feature
from cfmlc_jax.models.classifier import Outputs
from cfmlc_jax.models.heads.pooled import tau_norm

MEAN_FEATURE = ("head", "whole", "mean_feature")
_KERNEL = ("params", "head", "whole", "kernel")


class MeanFeature:
    """Updates the mean feature, the discounted sum of the pooled features of whole views, during training.

    Args:
        momentum: a function of the step -> factor of the previous value.
    """

    def __init__(self, momentum: Callable):
        self._momentum = momentum

    def update(self, batch_stats: dict[str, Any], pooled, step) -> dict[str, Any]:
        """The batch statistics with a new mean feature (`causal.mean_feature.moving_sum`).

        Args:
            batch_stats: already updated by this batch, except the mean feature.
            pooled: features [b, d] of the whole views.
            step: int32, the number of steps before this one.
        """
        flat = flatten_dict(batch_stats)
        moved = mean_feature.moving_sum(flat[MEAN_FEATURE], pooled, self._momentum(step))
        return unflatten_dict(flat | {MEAN_FEATURE: moved})


def counterfactual(outputs: Outputs, *, patch_weight: float):
    """The part of the combined logits along the mean feature, [b, k]. It needs no second forward pass.

    Args:
        outputs: the factual outputs of a head with a mean feature.
        patch_weight: of the patch logits in the combined ones, in which the mean feature has no part; 0 without
            patches.
    """
    whole = outputs.counterfactual[:, 0]
    return effects.combine(whole, jnp.zeros_like(whole), patch_weight)


def with_tau_norm(model: dict[str, Any], tau: float) -> dict[str, Any]:
    """A checkpoint's "model" item with tau-norm: linear weights w / ‖w‖^tau. With tau 0, the item unchanged."""
    if not tau:
        return model
    return model | {name: _tau_normed(model[name], tau) for name in ("variables", "average")}


def _tau_normed(variables, tau):
    flat = flatten_dict(variables, keep_empty_nodes=True)
    return unflatten_dict(flat | {_KERNEL: tau_norm(flat[_KERNEL], tau)})
