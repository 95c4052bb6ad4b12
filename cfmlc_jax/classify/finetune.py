"""Fine-tuning: a new run that begins with the weights of a checkpoint."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.engine.state import State
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import strict


def require_start(config) -> None:
    """Raise unless the weights that a new run begins with are there.

    Raises:
        InputError: no checkpoint where `init_from` says, or no `init_from` for a head that needs one.
    """
    if not config.init_from and is_second_stage(config.model):
        raise InputError(
            f"model.head {config.model.head!r} scales the weights of a trained classifier; "
            "set config.init_from to a run of model.head 'dot_product'"
        )
    if config.init_from:
        try:
            checkpoints.find(Path(config.init_from))
        except InputError as error:
            raise InputError(f"config.init_from: {error}") from error


def start_from(
    path: Path, state: State, *, config, class_names: Sequence[str], print_line: Callable[[str], None]
) -> State:
    """The first state with a checkpoint's averaged weights as variables and as their average.

    The averaged ones, since they are what predicts best. All of the backbone is taken; the head
    only as a whole, if all its shapes agree and its classes are not known to be others. A head that is a
    second stage (learnable weight scaling) takes what the first stage's head has of its arrays. Step, optimiser and
    mean colour begin anew.

    Args:
        path: a checkpoint, or a run for its best.
        state: a new run's.
        config: of the run.
        class_names: of the run.
        print_line: told in a line what was taken.

    Raises:
        InputError: no such checkpoint, one with another backbone, or no first stage for a head that is a
            second one.
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
        taken |= _of_first_stage(path, stored, wanted, same_classes)
    found = checkpoints.read_part(path, {"average": unflatten_dict(taken)})["average"]
    fresh = flatten_dict(state.learned["variables"], keep_empty_nodes=True)
    variables = unflatten_dict(fresh | flatten_dict(found))
    old = _described(meta["config"], checkpoints.num_classes(meta))
    if head_fits:
        print_line(f"begins with {path}: backbone and head ({old})")
    elif second_stage:
        print_line(
            f"begins with {path}: backbone and the head's weights ({old}), which are scaled from here on"
        )
    else:
        new = _described(configs.to_json(config), len(class_names))
        print_line(f"begins with {path}: its backbone; the head is fresh ({old} -> {new})")
    # Two copies: a step gives up the buffers of both.
    weights = {"variables": variables, "average": jax.tree.map(jnp.copy, variables)}
    return dataclasses.replace(state, learned=state.learned | weights)


def is_second_stage(model) -> bool:
    """Whether the head of a config.model goes on from the weights of another."""
    return catalogue.HEADS[model.head].second_stage


def _of_first_stage(path, stored, wanted, same_classes):
    """What a head of a second stage takes over: the arrays that both have, the kernel at least."""
    shared = {
        key: leaf
        for key, leaf in wanted.items()
        if not _is_backbone(key) and key in stored and stored[key].shape == leaf.shape
    }
    if not same_classes or ("params", "head", "whole", "kernel") not in shared:
        raise InputError(
            f"config.init_from {path} has no linear head of these classes to scale; give a run of model.head "
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
            "set config.model.name to its own, or take another checkpoint"
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
