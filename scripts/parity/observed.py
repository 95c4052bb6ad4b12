"""The results of one side of the comparison: stages in evaluation, and steps of training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

# Number of values of each gradient and change that are compared; limited because all steps are kept in memory.
SAMPLE = 4096
Sampled = dict[tuple[str, ...], np.ndarray]  # values of arrays by path


@dataclass(frozen=True)
class Step:
    """One update by one side.

    loss: loss before the update.
    settings: learning rate, beta1, beta2, epsilon, weight decay.
    gradient: gradient of the parameters by our paths, NaN where there is none.
    change, average: change since the start of parameters and statistics by our paths, in the model and in its
        average.
    """

    loss: float
    settings: np.ndarray
    gradient: Sampled
    change: Sampled
    average: Sampled


class Observed(NamedTuple):
    """Results of one side: stages in evaluation by name, and steps of training."""

    stages: dict[str, np.ndarray]
    steps: list[Step]


def sample(tree: Mapping[str, Any]) -> Sampled:
    """Values of every array by path: all of them, or `SAMPLE` at places that depend only on the array's size."""
    return {path: _some(np.asarray(array).ravel()) for path, array in flatten_dict(tree).items()}


def _some(values):
    if values.size <= SAMPLE:
        return values.astype(np.float64)
    return values[np.random.default_rng(values.size).integers(0, values.size, SAMPLE)].astype(np.float64)


def group_of(path: tuple[str, ...]) -> str:
    """The name under which a parameter is reported: "stem", "layer1" … or "head" and its part."""
    _, half, module, *_ = path
    if half == "head":
        return f"head {module}"
    return module.partition("_")[0] if module.startswith("layer") else "stem"
