"""Long-tailed heads: classifiers of pooled features, [..., d] -> `Logits` of k classes, and the head of one.

All classifiers are called alike, `classifier(features)`, compute in float32 or wider, and are found by name in `CLASSIFIERS`. `PooledHead` takes one for wholes.
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
    """What a classifier says of each image.

    factual: [..., k] its ordinary logits, those that are trained.
    counterfactual: [..., k] what it says of the mean feature alone (`mean_feature.logits`), so that
        `effects.total_direct_effect(factual, counterfactual, alpha)` is the prediction of Tang et
        al. for any alpha; None where a classifier has no mean feature.
    cosine: [...] of the features with the mean feature, averaged over heads; None likewise.
    """

    factual: Any
    counterfactual: Any = None
    cosine: Any = None


class CosineClassifier(nn.Module):
    """Multi-head cosine logits and their counterfactual: [..., d] -> `Logits` of [..., k].

    The reference's prediction, tau/K · Σ_j <x_j − alpha·cos_j·e_j, w_cj>, is the total direct effect
    factual − alpha·counterfactual: alpha is chosen after training, and 0 leaves the factual logits.

    The norm decides by what lengths products are divided:

    - "causal": ‖x‖·(‖w‖ + gamma), the de-confounded classifier;
    - "cosine": ‖x‖·‖w‖;
    - "capsule": (1 + ‖x‖)·‖w‖, long features count more (Liu et al., CVPR 2019). The reference
      has this norm of features but no classifier that uses it.

    The mean feature, variable "mean_feature" of collection "batch_stats", float32 [d], is only read here:
    training moves it after each step (`causal.mean_feature.moving_sum`), since the factual logits do not
    depend on it. A zero feature, or a mean feature that has seen no training, has no direction to be removed: the projection is
    zero and the effect is the factual prediction (the reference's is NaN).

    Attributes:
        num_classes: k.
        norm: one of `NORMS`.
        num_heads: K, slices of the features that are normalised by themselves.
        tau: factor of the mean cosine.
        gamma: added to the norms of weights by "causal".
        epsilon: added to every norm; the detector's heads have 1e-9.

    Raises:
        InputError: heads that do not divide the features.
        ValueError: another norm.
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
    """Learnable weight scaling, (Wx + b)·scales with only the scales trained: [..., d] -> `Logits`.

    W and b are those of a first stage (Kang et al., "Decoupling", ICLR 2020) and get no gradient
    here. An optimiser that decays weights must leave them out as well (`FROZEN`). A first stage without
    a bias leaves b at zero; the reference's stays as it was drawn.

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


# What learnable weight scaling does not train: all but its scales. The backbone's batch statistics still
# drift in training, as the reference's do.
FROZEN = (r"backbone/.*", r"head/whole/(kernel|bias)")

CLASSIFIERS: dict[str, Callable[..., nn.Module]] = {
    "causal_norm": functools.partial(CosineClassifier, norm="causal"),
    "cosine": functools.partial(CosineClassifier, norm="cosine"),
    "capsule": functools.partial(CosineClassifier, norm="capsule"),
    "dot_product": LinearClassifier,
    "lws": ScaledClassifier,
}


class PooledHead(nn.Module):
    """A long-tailed classifier for wholes, linear layers for patches, on pooled features [b, v, d].

    Attributes:
        num_classes: k.
        attention: a key of `BRANCHES`.
        classifier: (k, name=…, **options) -> one of `CLASSIFIERS`.
        options: further fields of it, as (name, value) pairs.
        dtype: of the computation; here it is always float32.
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
    """Weights of a linear classifier with their lengths evened out, w / ‖w‖^tau: [d, k] -> [d, k].

    Tau 0 leaves them, 1 makes all of length 1 (Kang et al., "Decoupling", ICLR 2020). A class whose
    weights are all zero keeps them.
    """
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    squared = (kernel * kernel).sum(axis=0, keepdims=True)
    return kernel / jnp.where(squared > 0, squared, 1) ** (tau / 2)


def _affine(x, kernel, bias):
    """Wx + b at full precision, at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    return y if bias is None else y + along_last(bias, y)
