"""Counterfactual generative networks for digits (Sauer & Geiger, ICLR 2021, arXiv:2101.06046).

An image is composed of three mechanisms that are generated independently: shape, texture and background.
Trained on images in which they agree, the generator draws images in which they do not: counterfactuals.
Where everything is:

- Mechanisms, composition, shuffling (`causal.mechanisms`), and the networks for them
  (`models.generators.mnist`) and for the critic (`models.generators.critics`).
- Losses (`losses.generative`, `losses.perceptual`): the generator minimises the critic's least-squares cost,
  the entropy of the mask, and the style distance to real images. The labels of the generated and of the
  real images are independent, so the style distance is between unrelated images.
- One step (`DigitsSystem.update`): the generator's optimiser, then the critic's. The critic learns from the
  images that the generator drew before its own step.
- Counterfactuals (`cgn.counterfactuals`): each mechanism gets its own label and noise.
- Recipes: `config.recipes.cgn_digits`, `configs/cgn_mnist.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cfmlc_jax import losses
from cfmlc_jax.causal import mechanisms
from cfmlc_jax.engine.system import Update
from cfmlc_jax.models.generators.mnist import SIZE, MnistGenerator
from cfmlc_jax.optim import ema


class Draws(NamedTuple):
    """The random numbers of a step, for b generated images.

    labels: int32 [b].
    noise: [b, latent].
    offsets: {"texture", "background"}: int32 [b, 2], for `mechanisms.shuffle`.
    """

    labels: Any
    noise: Any
    offsets: dict[str, Any]


@dataclass(frozen=True)
class Objective:
    """What the generator minimises in addition to the critic's cost.

    entropy: weight of the mask's entropy, in bits.
    style: weights of the style distances of the feature maps, the shallowest first; they are squared.
    features: network whose feature maps are compared: images [b, h, w, 3] -> a list of maps. It is not trained.
    sides: weight of the mask's mean along its sides, where no object is; 0 in the reference. Without it the generator
        can exchange foreground and background for some classes.
    """

    entropy: float
    style: Sequence[float]
    features: nn.Module
    sides: float = 0.0


class DigitsSystem:
    """A generator of digits and its critic in training, as an `engine.system.System`.

    `learned` has the entries

    - "generator": {"params", "batch_stats"}, the raw weights; and "average": the same tree, averaged over
      steps (EMA);
    - "critic": {"params", "batch_stats"};
    - "features": the variables of `Objective.features`, which stay as they are;
    - "generator_state" and "critic_state": of the optimisers.

    A batch is {"views": uint8 [b, 1, 32, 32, 3], "labels": one-hot [b, k]}, real images; as many are generated.

    Args:
        generator: draws images.
        critic: scores images and labels.
        objective: further losses of the generator.
        optimizers: of "generator" and of "critic".
        ema_decay: of the averaged weights.
        measure: a function of the "model" item and `poll` -> metrics by set of weights; None for a system that is
            never validated.
    """

    values = (
        "loss", "loss_critic", "adversarial", "entropy", "style", "sides", "critic_real", "critic_generated",
        "mask_mean", "grad_norm", "grad_norm_critic",
    )  # fmt: skip
    selection = "shape_accuracy"

    def __init__(
        self,
        generator: MnistGenerator,
        critic: nn.Module,
        objective: Objective,
        optimizers: dict[str, optax.GradientTransformation],
        *,
        ema_decay: float = 0.0,
        measure: Callable | None = None,
    ):
        self._generator, self._critic, self._objective = generator, critic, objective
        self._optimizers, self._ema_decay, self._measure = optimizers, ema_decay, measure

    def init(self, key) -> dict[str, Any]:
        """Random weights, averaged weights equal to them, and the optimisers' initial states."""
        generator_key, critic_key, features_key = jax.random.split(key, 3)
        model = initial_model(self._generator, generator_key)
        critic = _variables(self._critic, critic_key)
        features = self._objective.features
        return model | {
            "critic": critic,
            "features": features.init(features_key, *features.example()),
            "generator_state": self._optimizers["generator"].init(model["generator"]["params"]),
            "critic_state": self._optimizers["critic"].init(critic["params"]),
        }

    def update(self, learned, batch, key, step) -> Update:
        """One step of the generator, then one of the critic."""
        draw_key, dropout_key = jax.random.split(key)
        labels = batch["labels"].argmax(axis=-1)
        draws = draw(draw_key, len(labels), self._generator)
        return self.update_with(learned, in_signed_range(batch["views"][:, 0]), labels, draws, dropout_key)

    def update_with(self, learned, real, labels, draws: Draws, dropout_key) -> Update:
        """The same step with given labels, noise and offsets.

        Args:
            learned: before the step.
            real: [b, 32, 32, 3] in [−1, 1].
            labels: of the real images, int [b].
            draws: of the generated images.
            dropout_key: of the critic.
        """
        keys = jax.random.split(dropout_key, 3)
        gradient, (drawn, generator_stats, critic_stats, parts) = jax.grad(
            self._generator_loss, has_aux=True
        )(learned["generator"]["params"], learned, real, draws, keys[0])
        generator, generator_state = self._stepped("generator", learned, gradient, generator_stats)
        learned = learned | {"critic": learned["critic"] | critic_stats}
        critic_gradient, (critic_stats, critic_parts) = jax.grad(self._critic_loss, has_aux=True)(
            learned["critic"]["params"],
            learned["critic"],
            (real, labels),
            (drawn.image, draws.labels),
            keys[1:],
        )
        critic, critic_state = self._stepped("critic", learned, critic_gradient, critic_stats)
        loss = parts["adversarial"] + parts["entropy"] + parts["style"] + parts["sides"]
        loss_critic = (critic_parts["critic_real"] + critic_parts["critic_generated"]) / 2
        norms = {"grad_norm": optax.tree.norm(gradient), "grad_norm_critic": optax.tree.norm(critic_gradient)}
        return Update(
            learned={
                "generator": generator,
                "average": ema.update(learned["average"], generator, self._ema_decay),
                "critic": critic,
                "features": learned["features"],
                "generator_state": generator_state,
                "critic_state": critic_state,
            },
            values={
                "loss": loss,
                "loss_critic": loss_critic,
                **parts,
                **critic_parts,
                "mask_mean": drawn.mask.mean(),
                **norms,
            },
            watched=[
                ("generator batch_stats", generator["batch_stats"]),
                ("generator loss", parts),
                ("generator gradient", gradient),
                ("critic batch_stats", critic["batch_stats"]),
                ("critic loss", critic_parts),
                ("critic gradient", critic_gradient),
            ],
        )

    def split(self, learned) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two dicts: the generator's raw and averaged weights, to draw images; and everything else."""
        model = {name: learned[name] for name in ("generator", "average")}
        return model, {name: learned[name] for name in learned if name not in model}

    def readings(self, learned) -> dict[str, Any]:
        """None."""
        return {}

    def validate(self, learned, poll) -> dict[str, dict[str, float]]:
        """Metrics of generated images, of the raw and of the averaged weights."""
        if self._measure is None:
            raise ValueError("this system was built without a validation")
        return self._measure(learned, poll)

    def _generator_loss(self, params, learned, real, draws, dropout_key):
        drawn, generator_stats = self._generator.apply(
            learned["generator"] | {"params": params},
            *(mechanisms.same_for_all(x) for x in (draws.labels, draws.noise)),
            draws.offsets,
            train=True,
            mutable=["batch_stats"],
        )
        scores, critic_stats = self._score(learned["critic"], drawn.image, draws.labels, dropout_key)
        objective = self._objective
        maps, targets = (objective.features.apply(learned["features"], x) for x in (drawn.image, real))
        parts = {
            "adversarial": losses.generator_cost(scores).mean(),
            "entropy": objective.entropy * losses.binary_entropy(drawn.mask).mean(),
            "style": jnp.mean(losses.style(maps, targets, objective.style)),
            "sides": objective.sides * mechanisms.along_sides(drawn.mask).mean(),
        }
        return sum(parts.values()), (drawn, generator_stats, critic_stats, parts)

    def _critic_loss(self, params, critic, real: tuple, generated: tuple, dropout_keys):
        """The cost; and batch statistics and parts. `real` and `generated` are pairs of images and labels."""
        critic = critic | {"params": params}
        of_real, stats = self._score(critic, real[0], real[1], dropout_keys[0])
        of_generated, stats = self._score(critic | stats, generated[0], generated[1], dropout_keys[1])
        parts = {
            "critic_real": jnp.square(of_real - 1).mean(),
            "critic_generated": jnp.square(of_generated).mean(),
        }
        return losses.critic_cost(of_real, of_generated).mean(), (stats, parts)

    def _score(self, critic, images, labels, dropout_key):
        """Scores [b] in training, and {"batch_stats"} after them."""
        scores, stats = self._critic.apply(
            critic, images, labels, train=True, mutable=["batch_stats"], rngs={"dropout": dropout_key}
        )
        return scores, {"batch_stats": stats.get("batch_stats", {})}

    def _stepped(self, part, learned, gradient, stats):
        """The variables of "generator" or "critic" after a step, and the state of its optimiser."""
        params = learned[part]["params"]
        updates, state = self._optimizers[part].update(gradient, learned[f"{part}_state"], params)
        return {"params": optax.apply_updates(params, updates), **stats}, state


def in_signed_range(images):
    """Pixels as the networks take them: uint8 [...] -> float32 [...] in [−1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def in_bytes(images):
    """The inverse of `in_signed_range`, rounded: [...] in [−1, 1] -> uint8 [...]."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def draw(key, b: int, generator: MnistGenerator) -> Draws:
    """Uniform labels, normal noise and uniform offsets for b images without intervention."""
    label_key, noise_key, *offset_keys = jax.random.split(key, 4)
    return Draws(
        labels=jax.random.randint(label_key, (b,), 0, generator.num_classes),
        noise=jax.random.normal(noise_key, (b, generator.latent)),
        offsets={
            name: mechanisms.draw_offsets(offset_key, b, SIZE)
            for name, offset_key in zip((mechanisms.TEXTURE, mechanisms.BACKGROUND), offset_keys)
        },
    )


def initial_model(generator: MnistGenerator, key) -> dict[str, Any]:
    """The initial "model" item of a checkpoint: {"generator", "average"}."""
    variables = _variables(generator, key)
    return {"generator": variables, "average": jax.tree.map(jnp.copy, variables)}


def _variables(module, key):
    variables = module.init(key, *module.example(), train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
