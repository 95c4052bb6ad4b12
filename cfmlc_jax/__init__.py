"""Counterfactual multi-label image classification in JAX.

    classifier = cfmlc_jax.load("runs/scenes")                       # a run, or a checkpoint
    predictions = classifier.predict(["a.jpg", "b.jpg"])
    model = cfmlc_jax.create_model("resnet101", 80)                   # a Flax module
    variables = cfmlc_jax.from_torch("resnet101", state_dict)         # strict
    state_dict = cfmlc_jax.to_torch("resnet101", variables)

Importing the package imports nothing else: a name's module, and JAX, are imported when it is used first.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfmlc_jax.api import from_torch, to_torch
    from cfmlc_jax.models.catalogue import create_model
    from cfmlc_jax.predict.loaded import load

__version__ = "0.1.0"
__all__ = ["create_model", "from_torch", "load", "to_torch"]
_MODULES = {
    "create_model": "cfmlc_jax.models.catalogue",
    "from_torch": "cfmlc_jax.api",
    "load": "cfmlc_jax.predict.loaded",
    "to_torch": "cfmlc_jax.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
