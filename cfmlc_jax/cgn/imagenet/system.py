"""Counterfactual generative networks for ImageNet (Sauer & Geiger, ICLR 2021, arXiv:2101.06046, section 3).

Three BigGANs that were trained to draw whole images become mechanisms: one draws what a U²-Net turns into the
mask, one textures, one backgrounds. There is no data set and no critic: classes and noise are drawn, and the target is
the image that the BigGAN, kept as it was, draws for the same class and noise. Where everything is:

- Networks (`models.generators.imagenet_cgn`): the BigGANs, the U²-Net, the composition.
- Losses (`Objective`): the distance of the composed image from the target (absolute and of style), entropy and
  size of the mask, style of the texture against a grid of patches from inside the mask, and saliency of the background.
- One step (`ImageNetSystem.update`): gradients are summed over many micro-batches, then each mechanism's optimiser
  takes a step.
- Counterfactuals (`cgn.imagenet.drawing`): each mechanism gets its own class, and all get the same noise.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import losses
from cfmlc_jax.causal import mechanisms
from cfmlc_jax.engine import accumulation
from cfmlc_jax.engine.system import Update
from cfmlc_jax.losses import text_patches
from cfmlc_jax.models.generators import spectral
from cfmlc_jax.models.generators.imagenet_cgn import Composition, ImageNetGenerator

# The losses by name, and the entries of `ImageNetSystem`'s `learned` that draw images.
PARTS = ("l1", "style", "entropy", "mask", "text", "background")
MODEL = ("mechanisms", "target", "u2net")


class Draws(NamedTuple):
    """The random numbers of b images.

    classes: int32 [b], the same for all mechanisms.
    noise: [b, z], likewise.
    picks: int32 [b, 36], for `text_patches.patch_grids`.
    """

    classes: Any
    noise: Any
    picks: Any


@dataclass(frozen=True)
class Objective:
    """The weighted losses of composed images.

    l1: weight of the absolute distance from the target.
    style: weights of the style distances from the target, the shallowest map first; they are squared.
    entropy: weight of the mask's entropy, in bits.
    mask: weight of the distance of the mask's mean from [.1, .9].
    text: weights of the style distances of the foreground from a grid of the target's patches inside the mask.
    background: weight of the background's saliency.
    features: network whose feature maps are compared: images [b, h, w, 3] -> a list of maps. It is not trained.
    """

    l1: float
    style: Sequence[float]
    entropy: float
    mask: float
    text: Sequence[float]
    background: float
    features: nn.Module

    def __call__(self, variables, composed: Composition, picks) -> dict[str, Any]:
        """The weighted losses by the names in `PARTS`, each [b], or 0 for styles without any weight.

        Args:
            variables: of `features`.
            composed: b images.
            picks: [b, 36], for `text_patches.patch_grids`.
        """

        def maps(images):
            return self.features.apply(variables, images)

        # The grid is a target: the text loss trains the texture alone.
        mask = jax.lax.stop_gradient(composed.mask)
        grids = jax.lax.stop_gradient(text_patches.patch_grids(composed.target, mask, picks))
        return {
            "l1": self.l1 * losses.absolute_error(composed.image, composed.target),
            "style": losses.style(maps(composed.image), maps(composed.target), self.style),
            "entropy": self.entropy * losses.binary_entropy(composed.mask),
            "mask": self.mask * losses.mask_size(composed.mask),
            "text": losses.style(maps(composed.foreground), maps(grids), self.text),
            "background": self.background * losses.background_size(composed.background_saliency),
        }


class ImageNetSystem:
    """A counterfactual generator for ImageNet in training, as an `engine.system.System`.

    `learned` has the entries

    - "mechanisms": {"params", "batch_stats"} of the BigGANs that are trained, stacked along a new leading axis
      in the order of `mechanisms.MECHANISMS`: one BigGAN is compiled, and applied to each;
    - "target" and "u2net": {"params", "batch_stats"} of the networks that stay as they are;
    - "features": the variables of `Objective.features`, which stay as they are too;
    - "optimizer_state".

    A batch is {"position": int32 [n]}, the numbers 0 to n − 1: class and noise of an image are a function of the
    step's key and of its position, so that they do not depend on the devices.

    Args:
        generator: draws images.
        objective: the losses.
        optimizer: of the stacked parameters (`build.adam`).
        truncation: of the noise and of the norms' statistics, in (0, 1].
        micro_batches: number of parts of a batch, over which gradients are summed. In each, the loss is a mean.
        measure: a function of `learned` and `poll` -> metrics by set of weights; None for a system that is never
            validated.
    """

    values = ("loss", *PARTS, "mask_mean", *(f"grad_norm_{name}" for name in mechanisms.MECHANISMS))
    selection = "negative_loss"

    def __init__(
        self,
        generator: ImageNetGenerator,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        *,
        truncation: float = 1.0,
        micro_batches: int = 1,
        measure: Callable | None = None,
    ):
        self._generator, self._objective, self._optimizer = generator, objective, optimizer
        self._truncation, self._micro_batches, self._measure = truncation, micro_batches, measure

    def init(self, key) -> dict[str, Any]:
        """Random weights, the same for all four BigGANs, and the optimiser's initial state."""
        model_key, features_key = jax.random.split(key)
        model = initial_model(self._generator, model_key)
        return model | {
            "features": random_variables(self._objective.features, features_key),
            "optimizer_state": self._optimizer.init(model["mechanisms"]["params"]),
        }

    def update(self, learned, batch, key, step) -> Update:
        """Gradients summed over the micro-batches, then one step of the optimiser."""
        params, statistics = (learned["mechanisms"][name] for name in ("params", "batch_stats"))

        def gradient_of(number, part, statistics):
            draws = draw(key, part["position"], self._generator, self._truncation)
            gradient, (statistics, values) = jax.grad(self._loss, has_aux=True)(
                params, statistics, learned, draws
            )
            return gradient, statistics, values

        gradient, statistics, values = accumulation.accumulate(
            gradient_of, params, statistics, batch, number=self._micro_batches
        )
        updates, state = self._optimizer.update(gradient, learned["optimizer_state"], params)
        means = {name: by_part.mean() for name, by_part in values.items()}
        return Update(
            learned=learned
            | {
                "mechanisms": {"params": optax.apply_updates(params, updates), "batch_stats": statistics},
                "optimizer_state": state,
            },
            values={"loss": sum(means[name] for name in PARTS)} | means | _norms(gradient),
            watched=[("loss", {name: means[name] for name in PARTS}), ("gradient", gradient)],
        )

    def split(self, learned) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two dicts: the generator's networks, to draw images; and everything else."""
        model = {name: learned[name] for name in MODEL}
        return model, {name: learned[name] for name in learned if name not in model}

    def readings(self, learned) -> dict[str, Any]:
        """None."""
        return {}

    def validate(self, learned, poll) -> dict[str, dict[str, float]]:
        """Metrics of generated images."""
        if self._measure is None:
            raise ValueError("this system was built without a validation")
        return self._measure(learned, poll)

    def _loss(self, params, statistics, learned, draws):
        """The mean loss of a micro-batch; and the mechanisms' statistics after it, with its parts and the mask's mean."""
        model = learned | {"mechanisms": {"params": params, "batch_stats": statistics}}
        composed, statistics = compose(
            self._generator, model, *inputs(draws, self._generator), self._truncation, train=True
        )
        parts = self._objective(learned["features"], composed, draws.picks)
        means = {name: jnp.mean(part) for name, part in parts.items()}
        return sum(means.values()), (statistics, means | {"mask_mean": composed.mask.mean()})


def compose(
    generator: ImageNetGenerator,
    model: Mapping[str, Any],
    noise,
    classes: Mapping,
    truncation: float,
    *,
    train,
) -> tuple[Composition, Any]:
    """The images of `ImageNetGenerator`, and the mechanisms' statistics after them, of stacked networks.

    Args:
        generator: the module.
        model: the entries `MODEL` of `learned`.
        noise: [b, z], the same for all mechanisms.
        classes: {mechanism: [b, k]}.
        truncation: of the norms' statistics.
        train: whether the mechanisms' spectral norms take a step.
    """
    biggan = generator.biggan()

    def image(mechanism):
        variables, classes = mechanism
        features, updated = biggan.apply(
            variables, noise, classes, truncation, train=train, mutable=["batch_stats"]
        )
        return features["image"], updated["batch_stats"]

    by_mechanism = jnp.stack([classes[name] for name in mechanisms.MECHANISMS])
    images, statistics = jax.lax.map(image, (model["mechanisms"], by_mechanism))
    target = cast(
        dict, biggan.apply(model["target"], noise, classes[mechanisms.SHAPE], truncation, train=False)
    )
    u2net = {collection: {"u2net": tree} for collection, tree in model["u2net"].items()}
    composed = generator.apply(u2net, *images, target["image"], method="composed")
    return cast(Composition, composed), statistics


def _norms(gradient):
    """The norm of each mechanism's gradient, by name of the value."""
    squares = [jnp.square(leaf).sum(axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(gradient)]
    norms = jnp.sqrt(sum(squares))
    return {f"grad_norm_{name}": norms[i] for i, name in enumerate(mechanisms.MECHANISMS)}


def draw(key, positions, generator: ImageNetGenerator, truncation: float) -> Draws:
    """Uniform classes, truncated normal noise and uniform picks of the images at positions [b] of a step.

    Args:
        key: of the step.
        positions: int32 [b].
        generator: for its numbers of classes and of noise values.
        truncation: factor of the noise.
    """
    biggan = generator.biggan()

    def one(position):
        class_key, noise_key, picks_key = jax.random.split(jax.random.fold_in(key, position), 3)
        return Draws(
            classes=jax.random.randint(class_key, (), 0, biggan.num_classes),
            noise=mechanisms.truncated_noise(noise_key, (biggan.noise_size,), truncation),
            picks=text_patches.draw_picks(picks_key, 1)[0],
        )

    return jax.vmap(one)(positions)


def inputs(draws: Draws, generator: ImageNetGenerator) -> tuple[Any, dict]:
    """Noise [b, z] and one-hot classes {mechanism: [b, k]}, without intervention."""
    classes = jax.nn.one_hot(draws.classes, generator.biggan().num_classes)
    return draws.noise, mechanisms.same_for_all(classes)


def initial_model(generator: ImageNetGenerator, key) -> dict[str, Any]:
    """The initial "model" item of a checkpoint, the entries `MODEL`: all four BigGANs have the same random weights."""
    biggan_key, saliency_key = jax.random.split(key)
    biggan = random_variables(generator.biggan(), biggan_key, train=False)
    u2net = random_variables(generator.u2net_alone(), saliency_key, train=False)
    return stacked({"target": biggan, **mechanisms.same_for_all(biggan), "u2net": u2net})


def stacked(networks: Mapping[str, Any]) -> dict[str, Any]:
    """The entries `MODEL` of `learned`, from the variables {"params", "batch_stats"} of each network by name."""
    trained = [networks[name] for name in mechanisms.MECHANISMS]
    return {
        "mechanisms": jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained),
        "target": networks["target"],
        "u2net": networks["u2net"],
    }


def generator_variables(model: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of `ImageNetGenerator`, from the entries `MODEL` of `learned`."""
    networks = {"target": model["target"], "u2net": model["u2net"]}
    for i, name in enumerate(mechanisms.MECHANISMS):
        networks[name] = jax.tree.map(lambda leaf, i=i: leaf[i], model["mechanisms"])
    return {
        collection: {name: variables[collection] for name, variables in networks.items()}
        for collection in ("params", "batch_stats")
    }


def random_variables(module: nn.Module, key, **options) -> dict[str, Any]:
    """Random variables of a network: normal kernels of deviation 1/√(inputs), and norms that change nothing.

    All numbers are drawn at once: to compile the modules' own initialisation of hundreds of layers takes minutes.

    Args:
        module: with an `example` of its inputs.
        key: random key.
        options: of the module's call.
    """
    init = functools.partial(module.init, **options)
    shapes = flatten_dict(jax.eval_shape(init, jax.random.key(0), *module.example()))
    drawn = {path: leaf for path, leaf in shapes.items() if path[-1] in ("kernel", "raw_kernel", "u")}
    sizes = [leaf.size for leaf in drawn.values()]
    # Without the barrier, XLA compiles the generator into every use of a part.
    numbers = jax.lax.optimization_barrier(jax.random.normal(key, (sum(sizes),)))
    parts = jnp.split(numbers, np.cumsum(sizes)[:-1])
    variables = {
        path: jnp.full(leaf.shape, path[-1] in ("scale", "var", "vars"), leaf.dtype)
        for path, leaf in shapes.items()
    }
    for (path, leaf), x in zip(drawn.items(), parts):
        variables[path] = x.reshape(leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
    for path in [path for path in drawn if path[-1] == "u"]:
        layer = path[1:-1]
        matrix = spectral.as_matrix(variables["params", *layer, "raw_kernel"])
        variables[path] = spectral.unit(variables[path])
        variables["batch_stats", *layer, "v"] = spectral.unit(matrix @ variables[path])
    return unflatten_dict(variables)
