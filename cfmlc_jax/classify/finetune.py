"""Fine-tuning: initialises a new run from the weights of a checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.engine.state import State
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import strict


def require_start(config) -> None:
    """Raise unless the checkpoint exists that the configuration initialises a run from.

    Raises:
        InputError: there is no checkpoint at `init_from`; or the head needs `init_from` and it is not set.
    """
    if not config.init_from and is_second_stage(config.model):
        raise InputError(
            f"model.head {config.model.head!r} scales the weights of a trained classifier; "
            "set config.init_from to a run of model.head 'dot_product'"
        )
    if config.init_from:
        try:
            checkpoints.find(files.path_of(config.init_from))
        except InputError as error:
            raise InputError(f"config.init_from: {error}") from error


def start_from(
    path: Path, state: State, *, config, class_names: Sequence[str], print_line: Callable[[str], None]
) -> State:
    """The state of a new run, initialised from a checkpoint's averaged weights.

    The averaged weights predict best; they become both the raw and the averaged weights of the new run. All of
    the backbone is taken. The head is taken only if all its shapes match and its class names, where known, are
    the same. A second-stage head (learnable weight scaling) takes the arrays that it shares with the head of
    the first stage. Step, optimiser and mean colour start from their initial values.

    Args:
        path: a checkpoint, or the workdir of a run for its best checkpoint.
        state: the initial state of the new run.
        config: of the new run.
        class_names: of the new run.
        print_line: prints a line that says which weights were taken.

    Raises:
        InputError: there is no such checkpoint; its backbone differs; or a second-stage head needs a first
            stage that the checkpoint is not.
    """
    path = checkpoints.find(path)
    meta = checkpoints.read_meta(path)
    stored = flatten_dict(checkpoints.model_shapes(path)["average"])
    wanted = flatten_dict(jax.tree.map(_abstract, state.learned["average"]))
    _check_backbone(path, stored, wanted)
    same_classes = meta["class_names"] in (None, list(class_names))
    head_fits = _shapes(stored) == _shapes(wanted) and same_classes
    taken = {key: leaf for key, leaf in wanted.items() if head_fits or _is_backbone(key)}
    second_stage = is_second_stage(config.model) and not head_fits
    if second_stage:
        taken |= _from_first_stage(path, stored, wanted, same_classes)
    weights = checkpoints.read_part(path, {"average": unflatten_dict(taken)})["average"]
    initial = flatten_dict(state.learned["variables"], keep_empty_nodes=True)
    variables = unflatten_dict(initial | flatten_dict(weights))
    old = _described(meta["config"], checkpoints.num_classes(meta))
    if head_fits:
        print_line(f"initialised from {path}: backbone and head ({old})")
    elif second_stage:
        print_line(
            f"initialised from {path}: backbone and the weights of the head ({old}); only their scale is trained"
        )
    else:
        new = _described(configs.to_json(config), len(class_names))
        print_line(f"initialised from {path}: backbone; new head ({old} -> {new})")
    # Two copies, because a training step donates the buffers of both.
    both = {"variables": variables, "average": jax.tree.map(jnp.copy, variables)}
    return dataclasses.replace(state, learned=state.learned | both)


def is_second_stage(model) -> bool:
    """Whether the head of a config.model is trained from the weights of another head."""
    return catalogue.HEADS[model.head].second_stage


def _from_first_stage(path, stored, wanted, same_classes):
    """The arrays that a second-stage head takes from the first stage: those of equal name and shape."""
    shared = {
        key: leaf
        for key, leaf in wanted.items()
        if not _is_backbone(key) and key in stored and stored[key].shape == leaf.shape
    }
    if not same_classes or ("params", "head", "whole", "kernel") not in shared:
        raise InputError(
            f"config.init_from {path} has no linear head with these classes to scale; give a run of model.head "
            "'dot_product' or 'linear' on the same data"
        )
    return shared


def _check_backbone(path, stored, wanted):
    stored, wanted = (
        {"/".join(key): leaf for key, leaf in leaves.items() if _is_backbone(key)}
        for leaves in (stored, wanted)
    )
    difference = strict.compare({name: leaf.shape for name, leaf in wanted.items()}, stored)
    if difference:
        raise InputError(
            f"config.init_from {path} has another backbone ({difference}); "
            "set config.model.name to the checkpoint's, or give another checkpoint"
        )


def _abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _shapes(leaves):
    return {key: leaf.shape for key, leaf in leaves.items()}


def _is_backbone(key):
    return key[1] == "backbone"  # after the collection


def _described(stored, num_classes):
    fields = configs.completed(stored)
    branches = configs.branches_of(fields["method"], fields["patches.branches"])
    return f"{fields['model.name']}, branches {branches}, {num_classes} classes"
