"""PyTorch weights to our variables and back. Strict: every entry has its place or is an error.

The names are tables beside the modules (`models.naming`); here is what they have in common.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import build, tresnet
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.naming import BRANCHES, HeadNames, Table, from_torch_layout, to_torch_layout, torch_key

# InPlaceABN keeps its scale away from zero by this much, whatever the weight's sign.
_IN_PLACE = np.float32(1e-5)
_COUNTER = "num_batches_tracked"
# At most so many names of each kind in an error's one line.
_LISTED = 12


class Architecture(NamedTuple):
    """What a state_dict says of the model it belongs to, besides the backbone.

    num_classes: k.
    attention: a key of `naming.BRANCHES`.
    head: a key of `build.HEADS` with names in PyTorch.
    groups: queries of an ML-Decoder head; 0 for others.
    """

    num_classes: int
    attention: str
    head: str
    groups: int


class Entry(NamedTuple):
    """A variable of ours and where it is in PyTorch.

    path: collection, modules, name.
    key: in the state_dict.
    torch_shape: with PyTorch's axes.
    """

    path: tuple[str, ...]
    key: str
    torch_shape: tuple[int, ...]


def architecture(name: str, state_dict: Mapping[str, Any]) -> Architecture:
    """Classes, attention and head, by the head's entries.

    Raises:
        InputError: an unknown model, or no head of it in the state_dict.
    """
    backbone, _ = build.parts(name)
    tried = []
    for head, names in _heads(name):
        for attention in ("cross", "self", "none"):
            branches = names.branches(attention, names.prefix(backbone.torch))
            keys = [f"{path}.{names.bias}" for path in branches.values()]
            tried.append(keys[0])
            if all(key in state_dict for key in keys):
                groups = len(state_dict[f"{branches['whole']}.{names.queries}"]) if names.queries else 0
                return Architecture(np.shape(state_dict[keys[0]])[-1], attention, head, groups)
    raise InputError(
        f"no head of {name} among the {len(state_dict)} entries (looked for {', '.join(dict.fromkeys(tried))}): "
        "the weights are another model's, or a backbone's alone"
    )


def model(name: str, found: Architecture, *, image_size: int = 0) -> Classifier:
    """The classifier that a state_dict belongs to; by default at the least image size that suits it."""
    return build.create(
        name,
        found.num_classes,
        attention=found.attention,
        image_size=image_size or _least_size(name),
        head=found.head,
        groups=found.groups,
    )


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    allow: Sequence[str] = (),
    in_place_norms: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Our variables {"params", "batch_stats"} of a model, as float32 numpy arrays.

    Classes, attention and head follow from the state_dict (`architecture`). What the state_dict
    lacks where `allow` permits it keeps its initial values (seed 0).

    Args:
        name: a model of `models.build`.
        state_dict: arrays or CPU tensors by key, without the "module." of parallel training.
        allow: regular expressions of keys that may be left over or missing.
        in_place_norms: whether norm weights w act as |w| + 1e-5; None: as in the family's
            published checkpoints, which for a TResNet with timm's names means no.
        report: gets a line for every entry: what went where.

    Raises:
        InputError: left over, missing or mis-shaped entries, listed; an unknown model; in-place norms
            with timm's names.
    """
    backbone, _ = build.parts(name)
    found = architecture(name, state_dict)
    entries = list(_entries(name, found))
    by_timm = tresnet.TIMM_STEM in state_dict
    if by_timm:
        entries = [entry._replace(key=tresnet.timm_key(entry.key)) for entry in entries]
    in_place = _are_in_place(backbone, in_place_norms, by_timm)
    initial = _check(name, found, entries, state_dict, allow)
    variables = {}
    for entry in entries:
        leaf = entry.path[-1]
        if entry.key in state_dict:
            array = from_torch_layout(leaf, np.asarray(state_dict[entry.key], np.float32))
            note = ""
            if in_place and _is_norm_of_backbone(entry.path):
                array, note = np.abs(array) + _IN_PLACE, "  |w| + 1e-5"
        else:
            array, note = initial[entry.path], "  (missing: initial values)"
        variables[entry.path] = np.ascontiguousarray(array)
        if report:
            report(f"{entry.key} {list(entry.torch_shape)} -> {'/'.join(entry.path)}{note}")
    if report:
        for key in sorted(state_dict.keys() - {entry.key for entry in entries}):
            report(f"{key} -> (not used)")
    return {"batch_stats": {}} | unflatten_dict(variables)


def to_torch(
    name: str, variables: Mapping[str, Any], *, image_size: int = 448, in_place_norms: bool | None = None
) -> dict[str, np.ndarray]:
    """The state_dict of a model's variables, as numpy arrays: the inverse of `from_torch`.

    Bit for bit, but for what the formats do not share: counters of batches are 0, and the weight of
    an in-place norm comes back positive, as one that gives the same scale.

    Args:
        name: a model of `models.build`.
        variables: {"params", "batch_stats"}.
        image_size: pixels; what follows from it is saved by some models.
        in_place_norms: as in `from_torch`.

    Raises:
        InputError: a scale that no in-place norm has (below 1e-5); variables of another model.
    """
    backbone, _ = build.parts(name)
    in_place = backbone.torch.in_place_norms if in_place_norms is None else in_place_norms
    table = _table(name, _attention_and_head(name, variables))
    counted = backbone.torch.counts_batches and not _has_frozen_norms(name)
    state_dict = {}
    for path, leaf in _leaves(variables):
        key = torch_key(path[1:], table)
        array = np.asarray(leaf)
        if in_place and _is_norm_of_backbone(path):
            array = _in_place_weight(key, array)
        state_dict[key] = np.ascontiguousarray(to_torch_layout(path[-1], array))
        if counted and path[-1] == "var":
            state_dict[key.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    for derived in _derived(name):
        state_dict |= derived(state_dict, image_size)
    return state_dict


def _are_in_place(backbone, in_place_norms, by_timm):
    if by_timm and in_place_norms:
        raise InputError(
            f"in_place_norms=True does not go with timm's names ({tresnet.TIMM_STEM}): timm stores the scales "
            "themselves; leave in_place_norms out"
        )
    if in_place_norms is None:
        return backbone.torch.in_place_norms and not by_timm
    return in_place_norms


def _least_size(name):
    stride = build.parts(name)[0].stride
    return stride * max(1, 64 // stride)  # 64: one pixel in the last map is too few for some layers


def _initial(classifier, name):
    size = _least_size(name)
    init = functools.partial(classifier.init, train=False)
    return init, (jax.random.key(0), jnp.zeros((1, 1, size, size, 3)))


def _entries(name, found) -> Iterator[Entry]:
    table = _table(name, found)
    init, arguments = _initial(model(name, found), name)
    for path, leaf in _leaves(jax.eval_shape(init, *arguments)):
        shape = to_torch_layout(path[-1], np.broadcast_to(np.float32(0), leaf.shape)).shape
        yield Entry(path, torch_key(path[1:], table), shape)


def _leaves(variables):
    parts = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
    return flatten_dict(parts).items()


def _table(name, found) -> Table:
    """Paths of ours -> keys, for the whole classifier."""
    backbone, _ = build.parts(name)
    body = f"{backbone.torch.query2label}." if name.startswith(build.QUERY2LABEL) else ""
    names = dict(_heads(name))[found.head]
    head = names.table(found.attention, names.prefix(backbone.torch))
    return (
        *((rf"backbone\.{pattern}", body + replacement) for pattern, replacement in backbone.torch.modules),
        (r"backbone", body.removesuffix(".")),
        *((rf"head\.{pattern}", replacement) for pattern, replacement in head),
        (r"head", ""),
    )


def _attention_and_head(name, variables):
    """As `architecture`, by our own variables; classes and groups have no part in the names."""
    own = set(variables["params"]["head"])
    branches = {branch for names in BRANCHES.values() for branch in names}
    for attention, names in BRANCHES.items():
        if own & branches == set(names):
            for head, its_names in _heads(name):
                bias = its_names.bias.rpartition(".")[2]
                if bias in variables["params"]["head"]["whole"]:
                    return Architecture(0, attention, head, 0)
    raise InputError(f"variables with a head of {', '.join(sorted(own))} are not those of {name}")


def _check(name, found, entries, state_dict, allow):
    """Initial values by path of what is missing by permission; an error for all the rest."""
    allowed = re.compile("|".join(f"(?:{pattern})" for pattern in allow)) if allow else None

    def forbidden(keys):
        return [key for key in keys if not (allowed and allowed.search(key))]

    wanted = {entry.key: entry.torch_shape for entry in entries}
    # At the least size, a window of Swin's last stage is the whole map and needs no mask.
    sizes = (_least_size(name), 2 * _least_size(name))
    derived = {key for function in _derived(name) for size in sizes for key in function(wanted, size)}
    left_over = [key for key in state_dict if key not in wanted and not key.endswith(_COUNTER)]
    left_over = forbidden(key for key in left_over if key not in derived)
    missing = [key for key in wanted if key not in state_dict]
    mis_shaped = [
        f"{key} {list(np.shape(state_dict[key]))} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in state_dict and np.shape(state_dict[key]) != shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}"
        for kind, names in (
            ("missing", forbidden(missing)),
            ("left over", left_over),
            ("mis-shaped", mis_shaped),
        )
        if names
    ]
    if problems:
        raise InputError(f"these are not the weights of {name}: {'; '.join(problems)}")
    if not missing:
        return {}
    init, arguments = _initial(model(name, found), name)
    return dict(_leaves(jax.jit(init)(*arguments)))


def _derived(name):
    """Functions (state_dict of arrays or shapes, image size) -> entries that are not weights."""
    backbone, _ = build.parts(name)
    functions = (backbone.torch.derived, *(names.derived for _, names in _heads(name)))
    return [function for function in functions if function]


def _heads(name) -> list[tuple[str, HeadNames]]:
    """The heads that a model can have and that such files know, with their names there."""
    _, heads = build.parts(name)
    return [(head, names) for head in heads if (names := build.HEADS[head].torch) is not None]


def _has_frozen_norms(name):
    return name.startswith(build.QUERY2LABEL) and build.parts(name)[0].frozen_norms


def _is_norm_of_backbone(path):
    return path[1] == "backbone" and path[-1] == "scale"


def _in_place_weight(key, scale):
    """The positive w with w + 1e-5 = scale in float32."""
    if (scale < _IN_PLACE).any():
        raise InputError(
            f"{key}: a scale of {scale.min():g} is below 1e-5, which in-place norms cannot have; "
            "convert with in_place_norms=False"
        )
    weight = scale - _IN_PLACE
    # Rounded twice; of the neighbours one is right.
    for candidate in (np.nextafter(weight, np.float32(0)), np.nextafter(weight, np.float32(np.inf))):
        weight = np.where(weight + _IN_PLACE == scale, weight, candidate)
    return weight
