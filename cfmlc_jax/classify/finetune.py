"""Fine-tuning: initialises a new run from the weights of a checkpoint, of a file, or of a public model."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files, processes
from cfmlc_jax.buckets import Address
from cfmlc_jax.config.workdir import stored_fields
from cfmlc_jax.engine.state import State
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers import normalise
from cfmlc_jax.torch_weights import files as weight_files
from cfmlc_jax.torch_weights import strict
from cfmlc_jax.weights import hub, read
from cfmlc_jax.weights.fetch import Named, fetch, file_in, named
from cfmlc_jax.weights.table import LIST, nearest

_FIELD = "config.init_from"


def require_start(config, print_line: Callable[[str], None]):
    """The configuration of a new run, with the weights' own normalisation in place of data.normalise "auto".

    Public weights of init_from are downloaded if need be, and a file is read, so that the run fails now and not after its
    data is read.

    Args:
        config: validated.
        print_line: prints a line for the user.

    Raises:
        InputError: there is nothing at `init_from`, or nothing has that name; the weights cannot be read, or are of
            another backbone; or the head needs `init_from` and it is not set.
        RunError: public weights cannot be downloaded.
    """
    text = config.init_from
    if not text and is_second_stage(config.model):
        raise InputError(
            f"model.head {config.model.head!r} scales the weights of a trained classifier; "
            "set config.init_from to a run of model.head 'dot_product'"
        )
    if not text:
        return _with_normalisation(config, "")
    public = _named(text)
    if public is not None and public.entry is not None:
        _require_backbone(config, text, public.entry.model)
    path = processes.first_then_others(lambda: _located(text, print_line))
    stated = None
    if public is not None and path.is_file():
        stated = read.expected(path, public)
    if stated is None:
        stated = _opened(text, config, print_line).normalise
    if config.data.normalise == normalise.AUTO:
        print_line(f"data.normalise=auto: pixels {_pixels(stated)}, as {text} expects")
    return _with_normalisation(config, stated)


def resumed(config, workdir: Path):
    """The configuration of a run that has begun, with what it began with in place of data.normalise "auto".

    The weights that it was initialised from may be gone.

    Args:
        config: validated.
        workdir: of the run, which has checkpoints.

    Raises:
        InputError: config.json is damaged.
    """
    fields = stored_fields(workdir)
    if fields is None:  # the damaged checkpoints are reported where they are restored
        return config
    # A run of another system lacks the field; it is refused where the workdir is claimed.
    return _with_normalisation(config, configs.completed(fields).get("data.normalise", normalise.AUTO))


def _with_normalisation(config, text):
    """The configuration with this data.normalise in place of "auto"."""
    if config.data.normalise != normalise.AUTO:
        return config
    return configs.replaced(config, {"data.normalise": text})


def _pixels(text):
    return f"are standardised by {text}" if text else "are in [0, 1]"


class _Start(NamedTuple):
    """Weights to start from.

    label: how messages call them.
    model: its name.
    described: model, branches and classes.
    normalise: text of the normalisation that they expect (`normalise.parse`).
    class_names: in label order; None if they are not known.
    shapes: of the averaged variables, nested; anything with a shape.
    read: nested abstract arrays with shardings, some of `shapes` -> these arrays.
    """

    label: str
    model: str
    described: str
    normalise: str
    class_names: list[str] | None
    shapes: dict[str, Any]
    read: Callable[[dict[str, Any]], dict[str, Any]]


def start_from(
    start: str | os.PathLike,
    state: State,
    *,
    config,
    class_names: Sequence[str],
    print_line: Callable[[str], None],
) -> State:
    """The state of a new run, initialised from averaged weights.

    The averaged weights predict best; they become both the raw and the averaged weights of the new run. All of
    the backbone is taken. The head is taken only if all its shapes match and its class names, where known, are
    the same. A second-stage head (learnable weight scaling) takes the arrays that it shares with the head of
    the first stage. Step, optimiser and mean colour start from their initial values.

    Args:
        start: a checkpoint, the workdir of a run for its best checkpoint, a file of PyTorch or safetensors, or the
            name of public weights.
        state: the initial state of the new run.
        config: of the new run.
        class_names: of the new run.
        print_line: prints lines that say which weights were taken, and whether they expect other pixels.

    Raises:
        InputError: there are no such weights; their backbone differs; or a second-stage head needs a first
            stage that they are not.
        RunError: public weights cannot be downloaded.
    """
    weights = _opened(os.fspath(start), config, print_line)
    stored = flatten_dict(weights.shapes)
    wanted = flatten_dict(jax.tree.map(_abstract, state.learned["average"]))
    _check_backbone(weights, stored, wanted, config)
    same_classes = weights.class_names in (None, list(class_names))
    head_fits = _shapes(stored) == _shapes(wanted) and same_classes
    taken = {key: leaf for key, leaf in wanted.items() if head_fits or _is_backbone(key)}
    second_stage = is_second_stage(config.model) and not head_fits
    if second_stage:
        taken |= _from_first_stage(weights.label, stored, wanted, same_classes)
    arrays = weights.read(unflatten_dict(taken))
    initial = flatten_dict(state.learned["variables"], keep_empty_nodes=True)
    variables = unflatten_dict(initial | flatten_dict(arrays))
    if head_fits:
        print_line(f"initialised from {weights.label}: backbone and head ({weights.described})")
    elif second_stage:
        print_line(
            f"initialised from {weights.label}: backbone and the weights of the head ({weights.described}); only "
            "their scale is trained"
        )
    else:
        new = _described(configs.to_json(config), len(class_names))
        print_line(f"initialised from {weights.label}: backbone; new head ({weights.described} -> {new})")
    _tell_other_pixels(weights, config.data.normalise, print_line)
    # Two copies, because a training step donates the buffers of both.
    both = {"variables": variables, "average": jax.tree.map(jnp.copy, variables)}
    return dataclasses.replace(state, learned=state.learned | both)


def _tell_other_pixels(weights, text, print_line):
    """Print a line if the run has other pixels than the weights expect; the reference's recipes do, on purpose."""
    if normalise.parse(text) != normalise.parse(weights.normalise):
        value = weights.normalise or "''"
        print_line(
            f"warning: {weights.label} expects pixels that {_pixels(weights.normalise)}, in this run they {_pixels(text)}; "
            f"unless that is meant, set --config.data.normalise={value}"
        )


def _named(text) -> Named | None:
    """What the text of init_from names; None for a path."""
    try:
        return named(text)
    except InputError as error:
        raise InputError(f"{_FIELD}: {error}") from error


def _located(text, print_line) -> Path:
    """The file or checkpoint that init_from names, on this machine."""
    weights = _named(text)
    try:
        if weights is not None:
            if weights.repository is None and not weights.path.name.endswith(".safetensors"):
                weight_files.import_torch(
                    f"to read {weights.text}"
                )  # before a download that would be in vain
            path = fetch(weights, print_line, silent=jax.process_index() != 0)
            return _checkpoint_or_file(path.parent) if path.name in hub.WEIGHTS else path
        path = files.path_of(text)
        # A run that is still training may get a better checkpoint before the other processes look.
        return files.path_of(processes.of_first(lambda: str(_checkpoint_or_file(path))))
    except InputError as error:
        hint = f", a file of weights, or a name that {LIST} names{nearest(text)}" if weights is None else ""
        raise InputError(f"{_FIELD}: {error}{hint}") from error


def _checkpoint_or_file(path) -> Path:
    """The file of weights at a path or in a folder as the Hub has it, else the checkpoint there."""
    if isinstance(path, Address):  # files are read from disk alone
        return checkpoints.find(path)
    place = file_in(path)
    return place if place.is_file() else checkpoints.find(place)


def _opened(text, config, print_line) -> _Start:
    """The weights that init_from names."""
    path = _located(text, print_line)
    if path.is_file():
        return _of_file(path, text, config)
    return _of_checkpoint(path, str(path) if _named(text) is None else text)


def _of_checkpoint(path, label) -> _Start:
    meta = checkpoints.read_meta(path)
    system = configs.system(meta["config"])
    if system != configs.CLASSIFIER:
        what = "a classifier of stored regions" if system == configs.REGIONS else "a generator"
        raise InputError(f"{_FIELD} {label} is of {what}, not of a classifier of images; give other weights")
    fields = configs.completed(meta["config"])
    return _Start(
        label=label,
        model=fields["model.name"],
        described=_described(meta["config"], checkpoints.num_classes(meta)),
        normalise=fields["data.normalise"],
        class_names=meta["class_names"],
        shapes=checkpoints.model_shapes(path)["average"],
        read=lambda abstract: checkpoints.read_part(path, {"average": abstract})["average"],
    )


def _of_file(path, text, config) -> _Start:
    public = _named(text)
    try:
        pretrained = read.read(path, config.model.name, named=public)
    except InputError as error:
        raise InputError(f"{_FIELD}: {error}") from error
    _require_backbone(config, text, pretrained.model)
    return _Start(
        label=text,
        model=pretrained.model,
        described=f"{pretrained.model}, branches {pretrained.branches}, {pretrained.num_classes} classes",
        normalise=pretrained.normalise,
        class_names=pretrained.class_names,
        shapes=pretrained.variables,
        read=lambda abstract: _placed(pretrained.variables, abstract),
    )


def _placed(variables, abstract):
    """The arrays that `abstract` names, on its devices and of its types."""
    arrays = flatten_dict(variables)

    def place(array, leaf):
        array = array.astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda part: array[part])

    return unflatten_dict({key: place(arrays[key], leaf) for key, leaf in flatten_dict(abstract).items()})


def _require_backbone(config, label, model):
    """Raise unless the model of the weights has the backbone of the configuration."""
    wanted, own = (name.removeprefix(catalogue.QUERY2LABEL) for name in (config.model.name, model))
    if wanted != own:
        prefix = catalogue.QUERY2LABEL if config.model.name.startswith(catalogue.QUERY2LABEL) else ""
        raise InputError(
            f"{_FIELD} {label} has another backbone, {own} instead of {wanted}; set "
            f"--config.model.name={prefix}{own}, or give other weights"
        )


def is_second_stage(model) -> bool:
    """Whether the head of a config.model is trained from the weights of another head."""
    return catalogue.HEADS[model.head].second_stage


def _from_first_stage(label, stored, wanted, same_classes):
    """The arrays that a second-stage head takes from the first stage: those of equal name and shape."""
    shared = {
        key: leaf
        for key, leaf in wanted.items()
        if not _is_backbone(key) and key in stored and stored[key].shape == leaf.shape
    }
    if not same_classes or ("params", "head", "whole", "kernel") not in shared:
        raise InputError(
            f"{_FIELD} {label} has no linear head with these classes to scale; give a run of model.head "
            "'dot_product' or 'linear' on the same data"
        )
    return shared


def _check_backbone(weights, stored, wanted, config):
    stored, wanted = (
        {"/".join(key): leaf for key, leaf in leaves.items() if _is_backbone(key)}
        for leaves in (stored, wanted)
    )
    difference = strict.compare({name: leaf.shape for name, leaf in wanted.items()}, stored)
    if difference:
        _require_backbone(config, weights.label, weights.model)
        raise InputError(  # the same model of another size
            f"{_FIELD} {weights.label} has another backbone ({difference}); "
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
