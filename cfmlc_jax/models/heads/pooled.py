"""Heads for long-tailed data: classifiers of pooled features, [..., d] -> `Logits` of k classes.

All classifiers are called as `classifier(features)` and compute in float32 or wider; `CLASSIFIERS` lists them by
name. `PooledHead` is a head that applies one of them to whole views.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.causal import mean_feature as mean_features
from cfmlc_jax.models.heads.output import HeadOutput
from cfmlc_jax.models.layers.broadcasting import along_last
from cfmlc_jax.models.layers.initialisers import uniform_within
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.torch_names import BRANCHES

NORMS = ("causal", "cosine", "capsule")


@flax.struct.dataclass
class Logits:
    """Logits of a classifier for each image.

    factual: [..., k] the ordinary logits, which the loss trains.
    counterfactual: [..., k] logits of the projection on the mean feature (`mean_feature.logits`), so that
        `effects.total_direct_effect(factual, counterfactual, alpha)` is the prediction of Tang et
        al. for any alpha; None for a classifier without mean feature.
    cosine: [...] cosine between features and mean feature, averaged over heads; None likewise.
    """

    factual: Any
    counterfactual: Any = None
    cosine: Any = None


class CosineClassifier(nn.Module):
    """Multi-head cosine logits and their counterfactual: [..., d] -> `Logits` of [..., k].

    The reference's prediction, tau/K · Σ_j <x_j − alpha·cos_j·e_j, w_cj>, is the total direct effect
    factual − alpha·counterfactual. alpha is chosen after training, and 0 gives the factual logits.

    `norm` chooses the lengths by which products are divided:

    - "causal": ‖x‖·(‖w‖ + gamma), the de-confounded classifier;
    - "cosine": ‖x‖·‖w‖;
    - "capsule": (1 + ‖x‖)·‖w‖, so that long features count more (Liu et al., CVPR 2019). The reference
      has this norm of features but no classifier that uses it.

    The mean feature, variable "mean_feature" of collection "batch_stats", float32 [d], is only read here:
    training updates it after each step (`causal.mean_feature.moving_sum`), because the factual logits do not
    depend on it. If the feature is zero, or the mean feature is zero before training, the projection is zero
    and the effect equals the factual prediction (it is NaN in the reference).

    Attributes:
        num_classes: k.
        norm: one of `NORMS`.
        num_heads: K, the number of slices of the features that are normalised separately.
        tau: factor of the mean cosine.
        gamma: added to the norms of weights by "causal".
        epsilon: added to every norm; 1e-9 in the detector's heads.

    Raises:
        InputError: num_heads does not divide d.
        ValueError: an unknown norm.
    """

    num_classes: int
    norm: str = "causal"
    num_heads: int = 2
    tau: float = 16.0
    gamma: float = 1 / 32
    epsilon: float = 0.0

    @nn.compact
    def __call__(self, features) -> Logits:
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is not one of {', '.join(NORMS)}")
        d = features.shape[-1]
        kernel = self.param("kernel", uniform_within(d**-0.5), (d, self.num_classes))
        mean_feature = self.variable("batch_stats", "mean_feature", jnp.zeros, (d,), jnp.float32)
        factual, counterfactual = mean_features.logits(
            features,
            kernel,
            mean_feature.value,
            num_heads=self.num_heads,
            tau=self.tau,
            weight_offset=self.epsilon + (self.gamma if self.norm == "causal" else 0.0),
            feature_offset=self.epsilon + (1.0 if self.norm == "capsule" else 0.0),
            mean_offset=self.epsilon,
        )
        cosines = mean_features.cosines(features, mean_feature.value, self.num_heads)
        return Logits(factual, counterfactual, cosines.mean(axis=-1))


class LinearClassifier(nn.Module):
    """Plain linear logits, without a counterfactual: [..., d] -> `Logits` of [..., k].

    Attributes:
        num_classes: k.
        use_bias: whether classes have a bias; the reference's have none.
    """

    num_classes: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, features) -> Logits:
        d = features.shape[-1]
        kernel = self.param("kernel", uniform_within(d**-0.5), (d, self.num_classes))
        bias = self.param("bias", uniform_within(d**-0.5), (self.num_classes,)) if self.use_bias else None
        return Logits(_affine(features, kernel, bias))


class ScaledClassifier(nn.Module):
    """Learnable weight scaling, (Wx + b)·scales where only the scales are trained: [..., d] -> `Logits`.

    W and b come from a first stage of training (Kang et al., "Decoupling", ICLR 2020) and have no gradient
    here. An optimiser with weight decay must skip them too (`FROZEN`). If the first stage has no bias, b stays
    zero; in the reference it keeps its random initial value.

    Attributes:
        num_classes: k.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features) -> Logits:
        d, k = features.shape[-1], self.num_classes
        kernel = self.param("kernel", uniform_within(d**-0.5), (d, k))
        bias = self.param("bias", nn.initializers.zeros, (k,))
        scales = self.param("scales", nn.initializers.ones, (k,))
        plain = _affine(features, jax.lax.stop_gradient(kernel), jax.lax.stop_gradient(bias))
        return Logits(plain * along_last(scales, plain))


# Learnable weight scaling trains nothing but its scales. The backbone's batch statistics are still updated in
# training, as in the reference.
FROZEN = (r"backbone/.*", r"head/whole/(kernel|bias)")

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "causal_norm": functools.partial(CosineClassifier, norm="causal"),
    "cosine": functools.partial(CosineClassifier, norm="cosine"),
    "capsule": functools.partial(CosineClassifier, norm="capsule"),
    "dot_product": LinearClassifier,
    "lws": ScaledClassifier,
}


class PooledHead(nn.Module):
    """A long-tailed classifier for whole views and linear layers for patches: pooled [b, v, d] -> `HeadOutput`.

    Attributes:
        num_classes: k.
        attention: a key of `BRANCHES`.
        classifier: (k, name=…, **options) -> a module; one of `CLASSIFIERS`.
        options: further fields of the classifier, as (name, value) pairs.
        dtype: ignored; the computation is float32.
    """

    num_classes: int
    attention: str
    classifier: Callable
    options: tuple[tuple[str, Any], ...] = ()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool) -> HeadOutput:
        pooled = features["pooled"]
        name, *others = BRANCHES[self.attention]
        logits = self.classifier(self.num_classes, name=name, **dict(self.options))(pooled)
        patches = [Linear(self.num_classes, name=other)(pooled) for other in others]
        attention, score = (patches[0], patches[-1]) if patches else (None, None)
        return HeadOutput(logits.factual, attention, score, logits.counterfactual, logits.cosine)


def tau_norm(kernel, tau: float):
    """Tau-normalised weights of a linear classifier, w / ‖w‖^tau: [d, k] -> [d, k].

    Tau 0 leaves the weights unchanged, tau 1 gives all of them length 1 (Kang et al., "Decoupling", ICLR
    2020). Weights of a class that are all zero stay zero.
    """
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    squared = (kernel * kernel).sum(axis=0, keepdims=True)
    return kernel / jnp.where(squared > 0, squared, 1) ** (tau / 2)


def _affine(x, kernel, bias):
    """Wx + b at full precision, at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return y if bias is None else y + along_last(bias, y)
