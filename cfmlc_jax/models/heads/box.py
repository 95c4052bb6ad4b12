"""The box head of Tang et al. for LVIS: features of regions (RoIs) -> logits, effects, boxes.

The detector supplies RoI features [r, h, w, c] of one cascade stage (h = w = 7, c = 256 in the
reference) and receives `BoxOutputs`. Each stage of a cascade has its own `BoxHead`, with its own
weights and its own mean feature, which training updates by `mean_feature_after`; `Cascade` has all of them. For
inference:

    stages = [background_exempt(out.factual, out.counterfactual, background=…) for out in outputs]
    scores = average_stages(stages)

Training on stored regions (`cfmlc_jax.regions`) has neither boxes nor, if the detector's shared layers were applied
before the features were stored, shared layers.

The reference has two versions of the head (`VARIANTS`): for mmdetection 2.4 ("lvis1.0") and 1.1 ("lvis_old").
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.causal import effects
from cfmlc_jax.causal import mean_feature as mean_features
from cfmlc_jax.models.heads import pooled
from cfmlc_jax.models.layers.linear import Dense

BACKGROUNDS = ("first", "last")
COUNTED = ("foreground", "positive_labels")
LINEAR = "linear"
CLASSIFIERS = (*pooled.NORMS, LINEAR)


class Variant(NamedTuple):
    """The differences between the reference's two heads.

    background: whether the background is the "last" or the "first" column of the logits. Labels number the
        columns: with "last" classes are 0 … k − 1 and the background is k; with "first" the background is 0
        and classes are 1 … k.
    epsilon: `BoxHead.epsilon`.
    """

    background: str
    epsilon: float


VARIANTS = {"lvis1.0": Variant("last", 1e-9), "lvis_old": Variant("first", 0.0)}
# 1 − 0.1 · 0.002, the reference's constant.
MOMENTUM = 0.9998
ALPHA = 1.5


@flax.struct.dataclass
class BoxOutputs:
    """Outputs of a stage for every region.

    factual: [r, k + 1] logits of the classes and the background; the loss is their cross-entropy.
    counterfactual: [r, k + 1] the part of these logits that lies along the mean feature; None for a linear classifier.
    deltas: [r, 4] shift and scale of the box, the same for all classes; None for a head without boxes.
    features: [r, d] features after the shared layers.
    """

    factual: Any
    counterfactual: Any
    deltas: Any
    features: Any


class BoxHead(nn.Module):
    """Two shared layers, a causal-norm classifier and one box: RoI features [r, h, w, c] or [r, d] -> `BoxOutputs`.

    The mean feature ("batch_stats", "fc_cls/mean_feature") is only read here; `mean_feature_after` updates it.

    As in "lvis1.0", shared layers are initialised Xavier-uniform, boxes normal with deviation 0.001, biases
    zero.

    Attributes:
        num_classes: k, without the background.
        epsilon: added to every norm of the classifier.
        hidden: d, width of the shared layers.
        num_heads: K of the classifier.
        tau: tau of the classifier.
        gamma: gamma of the classifier.
        classifier: one of `pooled.NORMS`, or "linear": a dot product and a bias, as in detectors.
        shared_layers: number of them; 0: the features are classified as they are.
        boxes: whether there are deltas.
        dtype: type in which the shared layers are computed; the rest is float32.

    Raises:
        InputError: num_heads does not divide the width of the classified features.
    """

    num_classes: int
    epsilon: float = 1e-9
    hidden: int = 1024
    num_heads: int = 2
    tau: float = 16.0
    gamma: float = 1 / 32
    classifier: str = "causal"
    shared_layers: int = 2
    boxes: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, roi_features) -> BoxOutputs:
        x = roi_features
        if x.ndim == 4:
            # Channels first, so that weights of the reference need only be transposed.
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        for i in range(self.shared_layers):
            layer = self._dense(self.hidden, nn.initializers.xavier_uniform(), self.dtype, f"shared_fcs_{i}")
            x = nn.relu(layer(x))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        logits = self._classifier()(x)
        deltas = None
        if self.boxes:
            deltas = self._dense(4, nn.initializers.normal(0.001), jnp.float32, "fc_reg")(x)
        return BoxOutputs(
            factual=logits.factual, counterfactual=logits.counterfactual, deltas=deltas, features=x
        )

    def _classifier(self):
        rows = self.num_classes + 1
        if self.classifier == LINEAR:
            return pooled.LinearClassifier(rows, use_bias=True, name="fc_cls")
        return pooled.CosineClassifier(
            rows,
            norm=self.classifier,
            num_heads=self.num_heads,
            tau=self.tau,
            gamma=self.gamma,
            epsilon=self.epsilon,
            name="fc_cls",
        )

    def _dense(self, features, kernel_init, dtype, name):
        return Dense(
            features, kernel_init=kernel_init, bias_init=nn.initializers.zeros, dtype=dtype, name=name
        )


class Cascade(nn.Module):
    """The heads of all stages of a cascade, each with its own weights: features [r, s, …] -> s `BoxOutputs`.

    Attributes:
        head: creates a head by its name, as `functools.partial(BoxHead, …)` does.
        stages: s.
    """

    head: Callable[..., nn.Module]
    stages: int

    @nn.compact
    def __call__(self, features) -> list[BoxOutputs]:
        return [self.head(name=stage_name(i))(features[:, i]) for i in range(self.stages)]


def stage_name(stage: int) -> str:
    """The name of a stage's variables in `Cascade`."""
    return f"stage_{stage}"


def mean_feature_after(
    previous, features, labels, *, background: str, rows: int, counted: str = "foreground", momentum=MOMENTUM
):
    """The mean feature after a training batch: [d], [r, d], int [r] -> float32 [d].

    If no region of the batch counts, the mean feature is unchanged (the reference's becomes NaN forever).

    Args:
        previous: the value before; zeros at the start.
        features: `BoxOutputs.features` of all regions.
        labels: the column of each region's class; −1 for padding, which never counts.
        background: "first" or "last", as for the head.
        rows: number of logits per region, k + 1.
        counted: which regions count: "foreground", or "positive_labels", the reference's label > 0. With the
            background last, the latter includes the background and excludes class 0.
        momentum: share of the previous value that is kept.

    Raises:
        ValueError: an unknown `background` or `counted`.
    """
    if counted not in COUNTED:
        raise ValueError(f"counted {counted!r} is not one of {', '.join(COUNTED)}")
    if counted == "positive_labels":
        counts = labels > 0
    else:
        counts = (labels >= 0) & (labels != background_row(background, rows))
    return mean_features.moving_sum(previous, features, momentum, counts)


def background_row(background: str, rows: int) -> int:
    """Index of the background among the k + 1 logits of a region.

    Raises:
        ValueError: neither "first" nor "last".
    """
    if background not in BACKGROUNDS:
        raise ValueError(f"background {background!r} is not one of {', '.join(BACKGROUNDS)}")
    return 0 if background == "first" else rows - 1


def background_exempt(factual, counterfactual, *, alpha: float = ALPHA, background: str):
    """Probabilities in which the effect only reorders the classes: two [r, k + 1] -> [r, k + 1].

    The background keeps its factual probability; the rest is divided among the classes by a
    softmax of their total direct effects. Each region's probabilities sum to 1. (The reference divides a softmax
    over all columns by its sum over the classes, with 1e-10 added to both; the sum is then below 1 if the
    background's effect is far above the others.)

    Raises:
        ValueError: an unknown background.
    """
    rows = factual.shape[-1]
    is_class = jnp.broadcast_to(jnp.arange(rows) != background_row(background, rows), factual.shape)
    plain = jax.nn.softmax(factual, axis=-1)
    effect = effects.total_direct_effect(factual, counterfactual, alpha)
    share = jax.nn.softmax(effect, axis=-1, where=is_class)
    foreground = jnp.where(is_class, plain, 0).sum(axis=-1, keepdims=True)
    return jnp.where(is_class, foreground * share, plain)


def average_stages(stages: Sequence, *, second_softmax: bool = False):
    """Scores of a cascade, the mean of its stages' probabilities: several [r, k + 1] -> [r, k + 1].

    Args:
        stages: probabilities by stage (`background_exempt`).
        second_softmax: apply a softmax to the mean as if it were logits, as the reference's
            post-processing does. The order within a region is unchanged, but all scores shrink to about
            1/(k + 2.7) … e/(k + 2.7); the reference's score thresholds (1e-5 and 0) apply to these.
    """
    mean = sum(stages) / len(stages)
    return jax.nn.softmax(mean, axis=-1) if second_softmax else mean
