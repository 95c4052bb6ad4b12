"""Any classifier of this package on images that probe what it relies on: its logits, and how it reads the images."""

import dataclasses
from typing import Any

import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.classify import build, deconfound, scoring
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.classify.opening import Opened
from cfmlc_jax.data.sources import Source
from cfmlc_jax.engine.memory import explained
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.imagenet_groups import IMAGENET_CLASSES
from cfmlc_jax.results.predictions import KINDS
from cfmlc_jax.results.split import AVERAGE


class Probed:
    """A classifier whose predictions are asked for.

    Args:
        opened: the classifier of a checkpoint.
        weights: "average" (averaged weights) or "weights" (raw ones).
        fields: fields of the configuration that replace the checkpoint's, by their names, such as "views.image_size".

    Raises:
        InputError: the model does not suit the fields.
    """

    def __init__(self, opened: Opened, weights: str = AVERAGE, fields: dict[str, Any] | None = None):
        self.opened, self._weights = opened, weights
        stored = configs.to_json(opened.config)
        for name, value in (fields or {}).items():
            section, _, field = name.rpartition(".")
            configs.field(stored, section)[field] = value
        self.config = configs.from_json(stored)
        parts = build.create(self.config, opened.num_classes)
        # Shares of a part of the images would be those of another test.
        self._parts: Parts = dataclasses.replace(
            parts, reading=dataclasses.replace(parts.reading, skip=False)
        )
        self._score = scoring.score_step(self.config, self._parts, ())

    def logits(self, source: Source) -> dict[str, np.ndarray]:
        """The logits [n, k] of every factual prediction by its kind, "combined" first, then as in `KINDS`.

        Raises:
            InputError: an image cannot be read.
            RunError: there is not enough memory.
        """
        model = deconfound.with_tau_norm(self.opened.model, self.config.model.dot_product.tau_norm)
        with explained("evaluation", f"make --batch-size (now {self.batch_size}) smaller"):
            scores, _ = scoring.score_readable(
                self._parts, self._score, model, source, batch_size=self.batch_size, weights=(self._weights,)
            )
        logits = scores[self._weights].logits
        kinds = [kind for kind in KINDS if kind in logits and kind != "combined"]
        if not self._parts.method.predict_patches:
            kinds.remove("whole")  # the same as combined
        return {kind: logits[kind] for kind in ("combined", *kinds)}

    @property
    def batch_size(self) -> int:
        """Images per batch, over all devices."""
        return self.config.evaluate.batch_size

    @property
    def description(self) -> str:
        """The checkpoint and its method, for the first line of a report."""
        return f"checkpoint {self.opened.path.name} of method {self.config.method}, {self._weights_title}"

    @property
    def _weights_title(self):
        return "averaged weights" if self._weights == AVERAGE else "raw weights"


def require_imagenet(opened: Opened, also: tuple[int, str] | None = None) -> None:
    """Raise unless a classifier has ImageNet's 1,000 classes. Their order is not known from a checkpoint.

    Args:
        opened: the classifier.
        also: another number of classes that is right, and what it stands for.

    Raises:
        InputError: another number of classes.
    """
    if opened.num_classes == IMAGENET_CLASSES or (also and opened.num_classes == also[0]):
        return
    other = f", or {also[1]}" if also else ""
    raise InputError(
        f"checkpoint {opened.path} has {opened.num_classes} classes, wanted ImageNet's {IMAGENET_CLASSES} in their usual "
        f"order{other}; give a classifier of ImageNet, such as converted weights (python -m cfmlc_jax.torch_weights)"
    )
