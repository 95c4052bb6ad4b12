"""Metrics of a generator after an epoch: whether its masks have the shapes of the classes that they are drawn for."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from cfmlc_jax.causal.mechanisms import MECHANISMS, SHAPE
from cfmlc_jax.cgn.counterfactuals import Painter, drawing_weights
from cfmlc_jax.cgn.system import in_signed_range
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import RunError
from cfmlc_jax.metrics import masks
from cfmlc_jax.models.generators.mnist import MnistGenerator

# Images that are drawn for the metrics, with the same labels and noise after every epoch.
COUNT = 1000
# Most real masks that generated ones are compared with.
MOST_REAL = 4000
_SEED = 0
# A mean of all masks outside this range is a collapse, and so is a deviation between masks below the least.
_EMPTY, _FULL, _LEAST_DEVIATION = 0.01, 0.99, 0.01
# Mean scores of real and of generated images (1 and 0 are perfect) beyond which the critic has won.
_REAL_WON, _GENERATED_WON = 0.95, 0.05
# A mean magnitude of scores beyond which the critic has diverged; useful scores are about 0 to 1.
_DIVERGED = 5.0


class Validation:
    """A function of `learned` and `poll` -> metrics by set of weights; and warnings about the last call.

    The metrics are

    - those of `metrics.masks.quality`: shape_accuracy, mask_iou, mask_iou_class, mask_mean, mask_deviation,
      mask_binary;
    - critic_real, critic_generated: the critic's mean scores of real and of drawn images;
    - critic_magnitude: the mean magnitude of all these scores.

    Attributes:
        drawing: the weights that drew the averaged weights' images at the last call.

    Args:
        generator: draws counterfactuals.
        critic: scores images and labels.
        source: real images with masks.
        mesh: the devices.
        ema_decay: of the averaged weights (`counterfactuals.drawing_weights`).
        on_collapse: "warn", or "stop": raise an error if masks have collapsed.
    """

    def __init__(
        self,
        generator: MnistGenerator,
        critic,
        source,
        mesh: jax.sharding.Mesh,
        *,
        ema_decay: float,
        on_collapse: str,
    ):
        self._painter, self._generator = Painter(generator, mesh, COUNT), generator
        self._ema_decay = ema_decay
        chosen = spread(len(source), MOST_REAL)
        self._masks = np.stack([source.mask(index) for index in chosen])
        self._labels = source.labels[chosen].argmax(axis=1)
        shown = spread(len(source), COUNT)
        self._images = np.stack([np.asarray(source[index]["image"]) for index in shown])
        self._image_labels = source.labels[shown].argmax(axis=1)
        self._score = jax.jit(
            lambda variables, images, labels: critic.apply(variables, images, labels, train=False),
            out_shardings=meshes.replicated(mesh),
            compiler_options=meshes.compiler_options(mesh),
        )
        self._on_collapse = on_collapse
        self._warnings: list[str] = []
        self.drawing: dict[str, Any] = {}

    def __call__(self, learned: dict[str, Any], poll: Callable[[], None]) -> dict[str, dict[str, float]]:
        """Metrics of the raw weights ("weights") and of the averaged ones ("average").

        Raises:
            RunError: the masks have collapsed, with `on_collapse` "stop".
        """
        self._warnings = []
        real = self._score(learned["critic"], in_signed_range(self._images), self._image_labels)
        metrics = {}
        self.drawing = drawing_weights(learned["average"], self._generator, self._ema_decay)
        for weights, variables in {"weights": learned["generator"], "average": self.drawing}.items():
            poll()
            metrics[weights] = self._measure(learned, weights, variables, real)
        self._warnings = warnings_of(metrics["average"])
        return metrics

    def warnings(self) -> list[str]:
        """Lines about masks that collapsed or a critic that has won, at the last call."""
        return self._warnings

    def _measure(self, learned, weights, variables, real):
        labels, composed = self._painter(variables, jax.random.key(_SEED))
        shapes = labels[:, MECHANISMS.index(SHAPE)]
        scores = self._score(learned["critic"], composed.image, shapes)
        drawn = np.asarray(composed.mask)[..., 0]
        quality = masks.quality(drawn, shapes, self._masks, self._labels)
        problem = collapse(quality["mask_mean"] / 100, quality["mask_deviation"] / 100)
        if problem and self._on_collapse == "stop" and weights == "average":
            raise RunError(
                f"{problem}; start again in another workdir with another seed, a smaller loss.entropy or a smaller "
                "optim.learning_rate"
            )
        return quality | {
            "critic_real": float(np.mean(real)),
            "critic_generated": float(np.mean(scores)),
            "critic_magnitude": float(np.mean([np.abs(real).mean(), np.abs(scores).mean()])),
        }


def collapse(mean: float, deviation: float) -> str:
    """A description of masks that have collapsed; empty if they have not."""
    if mean < _EMPTY or mean > _FULL:
        return f"the masks are {'empty' if mean < _EMPTY else 'full'}: their mean is {mean:.3f}"
    if deviation < _LEAST_DEVIATION:
        return f"all masks are alike: the deviation between them is {deviation:.3f}"
    return ""


def warnings_of(metrics: Mapping[str, float]) -> list[str]:
    """Lines about masks that collapsed or a critic that has won, by metrics of the averaged weights."""
    lines = []
    problem = collapse(metrics["mask_mean"] / 100, metrics["mask_deviation"] / 100)
    if problem:
        lines.append(f"warning: {problem}; counterfactuals of such masks have no shape")
    if metrics["critic_magnitude"] > _DIVERGED:
        lines.append(
            f"warning: the critic has diverged: its scores, of use from 0 to 1, have a mean magnitude of "
            f"{metrics['critic_magnitude']:.1f}; start again in another workdir with a smaller optim.learning_rate, "
            "with optim.clip=2, which shortens sudden gradients, or with another seed"
        )
    elif metrics["critic_real"] > _REAL_WON and metrics["critic_generated"] < _GENERATED_WON:
        lines.append(
            f"warning: the critic tells all images apart (mean score {metrics['critic_real']:.2f} of real ones, "
            f"{metrics['critic_generated']:.2f} of drawn ones), so that the generator learns little; a smaller "
            "critic.ndf or a larger critic.dropout makes it weaker"
        )
    return lines


def spread(length, most):
    """At most so many indices, evenly spread over a length: int [m]."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))
