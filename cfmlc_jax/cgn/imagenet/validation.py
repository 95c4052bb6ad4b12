"""Metrics of a generator for ImageNet after an epoch: its losses and its masks, of the same images every time."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.cgn.imagenet.system import MODEL, PARTS, Objective, compose, draw, inputs
from cfmlc_jax.cgn.validation import collapse
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import RunError
from cfmlc_jax.models.generators.imagenet_cgn import ImageNetGenerator

_SEED = 0


class Validation:
    """A function of `learned` and `poll` -> metrics of the weights; and warnings about the last call.

    The metrics are

    - negative_loss, and the losses by name: means of drawn images. They are what is trained, not the quality of the
      images, which a network for it (Inception) would have to measure;
    - mask_mean: mean of the masks, percent; mask_deviation: deviation between the masks, percent;
    - mask_binary: percentage of their pixels below .1 or above .9.

    Args:
        generator: draws images.
        objective: the losses.
        mesh: the devices.
        truncation: as in training.
        num_images: in all, a multiple of `batch_size`.
        batch_size: images at once.
        on_collapse: "warn", or "stop": raise an error if masks have collapsed.
    """

    def __init__(
        self,
        generator: ImageNetGenerator,
        objective: Objective,
        mesh: jax.sharding.Mesh,
        *,
        truncation: float,
        num_images: int,
        batch_size: int,
        on_collapse: str,
    ):
        def measure(learned, start):
            draws = draw(
                jax.random.key(_SEED),
                start + jnp.arange(batch_size, dtype=jnp.int32),
                generator,
                truncation,
            )
            composed, _ = compose(generator, learned, *inputs(draws, generator), truncation, train=False)
            parts = objective(learned["features"], composed, draws.picks)
            return {name: jnp.mean(part) for name, part in parts.items()}, composed.mask[..., 0]

        self._measure = jax.jit(
            measure,
            out_shardings=meshes.replicated(mesh),
            compiler_options=meshes.compiler_options(mesh),
        )
        self._starts = range(0, num_images, batch_size)
        self._on_collapse = on_collapse
        self._warnings: list[str] = []

    def __call__(self, learned: Mapping[str, Any], poll: Callable[[], None]) -> dict[str, dict[str, float]]:
        """Metrics of the weights ("weights").

        Raises:
            RunError: the masks have collapsed, with `on_collapse` "stop".
        """
        networks = {name: learned[name] for name in (*MODEL, "features")}
        totals, masks = dict.fromkeys(PARTS, 0.0), []
        for start in self._starts:
            poll()
            parts, mask = self._measure(networks, np.int32(start))
            totals = {name: total + float(parts[name]) for name, total in totals.items()}
            masks.append(np.asarray(mask))
        drawn = np.concatenate(masks)
        losses = {name: total / len(self._starts) for name, total in totals.items()}
        mean, deviation = float(drawn.mean()), float(drawn.std(axis=0).mean())
        problem = collapse(mean, deviation)
        if problem and self._on_collapse == "stop":
            raise RunError(
                f"{problem}; start again in another workdir with a smaller loss.entropy or a smaller optim.shape"
            )
        warning = f"warning: {problem}; counterfactuals of such masks have no shape"
        self._warnings = [warning] if problem else []
        mask_metrics = {
            "mask_mean": 100 * mean,
            "mask_deviation": 100 * deviation,
            "mask_binary": 100 * float(((drawn < 0.1) | (drawn > 0.9)).mean()),
        }
        return {"weights": {"negative_loss": -sum(losses.values())} | losses | mask_metrics}

    def warnings(self) -> list[str]:
        """Lines about masks that collapsed, at the last call."""
        return self._warnings
