"""The Python API of weights: a model's from PyTorch, and to PyTorch."""

import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import cgn, files, mlc_pat, strict


def from_torch(
    name: str | nn.Module, state_dict: Mapping[str, Any], *, in_place_norms: bool | None = None
) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of a model, float32 numpy arrays, from its PyTorch state_dict.

    The number of classes, the attention and the head are inferred from the entries; give the same to
    `create_model`. A backbone without a head yields the backbone's variables alone. Entries are named as in MLC-PAT,
    Query2Label, torchvision, timm or MIIL, with or without the prefix "module." of parallel training.

    Args:
        name: as for `create_model`; or a part of counterfactual generative networks: a key of
            `cfmlc_jax.torch_weights.cgn.MODULES`, or such a module itself if its sizes differ from those.
        state_dict: tensors or numpy arrays by key.
        in_place_norms: whether norm weights w act as |w| + 1e-5; None: as the published weights of the model need.

    Raises:
        InputError: an unknown name; or entries that are missing, left over or mis-shaped, which are listed.
    """
    arrays = strict.without_parallel(files.arrays("the state_dict", state_dict))
    model = _known(name, in_place_norms)
    if isinstance(model, str):
        return mlc_pat.from_torch(model, arrays, in_place_norms=in_place_norms)
    return cgn.from_torch(model, arrays)


def to_torch(
    name: str | nn.Module,
    variables: Mapping[str, Any],
    *,
    image_size: int = 448,
    in_place_norms: bool | None = None,
) -> dict[str, np.ndarray]:
    """The PyTorch state_dict of a model's variables, numpy arrays by key: the inverse of `from_torch`.

    Args:
        name: as for `from_torch`.
        variables: {"params", "batch_stats"}.
        image_size: side of the views, pixels; some models store tables that depend on it.
        in_place_norms: as for `from_torch`.

    Raises:
        InputError: an unknown name, or variables of another model.
    """
    model = _known(name, in_place_norms)
    if isinstance(model, str):
        return mlc_pat.to_torch(model, variables, image_size=image_size, in_place_norms=in_place_norms)
    return cgn.to_torch(model, variables)


def _known(name: str | nn.Module, in_place_norms: bool | None) -> str | nn.Module:
    """The name of a classifier, or the module of a counterfactual generative network.

    Raises:
        InputError: the name is neither.
    """
    module = cgn.MODULES.get(name) if isinstance(name, str) else name
    if module is not None:
        if in_place_norms is not None:
            raise InputError(f"in_place_norms does not apply to {type(module).__name__}; omit it")
        return module
    known = [*catalogue.names(), *cgn.MODULES]
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"model {name!r} is not one of {', '.join(known)}{hint}")
    return name
