"""What either side of the comparison computes: stages in evaluation, and steps of training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

# So many values of an array's gradient and change are compared: those of all steps are kept.
SAMPLE = 4096
Sampled = dict[tuple[str, ...], np.ndarray]  # values of arrays by path


@dataclass(frozen=True)
class Step:
    """One update, as either side saw it.

    loss: before it.
    settings: learning rate, beta1, beta2, epsilon, weight decay.
    gradient, change, average: of parameters (and statistics, the latter two) by our paths: the
        gradient, NaN where there is none; what changed since the start, in the model and in its average.
    """

    loss: float
    settings: np.ndarray
    gradient: Sampled
    change: Sampled
    average: Sampled


class Observed(NamedTuple):
    """What one side computes: stages in evaluation, by name, and steps of training."""

    stages: dict[str, np.ndarray]
    steps: list[Step]


def sample(tree: Mapping[str, Any]) -> Sampled:
    """Of every array, by path, all values or `SAMPLE` at places that depend on its size alone."""
    return {path: _some(np.asarray(array).ravel()) for path, array in flatten_dict(tree).items()}


def _some(values):
    if values.size <= SAMPLE:
        return values.astype(np.float64)
    return values[np.random.default_rng(values.size).integers(0, values.size, SAMPLE)].astype(np.float64)


def group_of(path: tuple[str, ...]) -> str:
    """What a parameter is told under: "stem", "layer1" … or "head" and its part."""
    _, half, module, *_ = path
    if half == "head":
        return f"head {module}"
    return module.partition("_")[0] if module.startswith("layer") else "stem"
