"""Strict comparison and conversion of named arrays: unmatched arrays are errors, and are listed.

An `Entry` maps one of our variables to its place in PyTorch. A `Difference` lists how the arrays of a file differ
from the wanted ones. All converters use both.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.models.torch_names import Table, from_torch_layout, to_torch_layout, torch_key

LISTED = 12  # greatest number of names of each kind in an error message
COUNTER = "num_batches_tracked"  # end of the key of a norm's batch counter, which is not read
PARALLEL = "module."  # prefix that parallel training adds to every key
_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Differences between arrays and the wanted ones: names by kind, mis-shaped ones with both shapes.

    It is truthy if there is any difference. Its text is, for example, "2 missing: a, b; 1 left over: c".
    """

    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    mis_shaped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.missing) + len(self.left_over) + len(self.mis_shaped)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "left over": self.left_over, "mis-shaped": self.mis_shaped}
        return "; ".join(f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names)

    def without(self, patterns: Sequence[str]) -> "Difference":
        """The difference without missing and left over names that match one of the regular expressions."""
        if not patterns:
            return self
        allowed = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
        missing, left_over = (
            tuple(name for name in names if not allowed.search(name))
            for names in (self.missing, self.left_over)
        )
        return dataclasses.replace(self, missing=missing, left_over=left_over)


def compare(shapes: Mapping[str, Iterable[int]], arrays: Mapping[str, Any]) -> Difference:
    """The difference between arrays (or anything with a shape) by name and the wanted shapes."""
    return Difference(
        missing=tuple(name for name in shapes if name not in arrays),
        left_over=tuple(name for name in arrays if name not in shapes),
        mis_shaped=tuple(
            f"{name} {list(np.shape(arrays[name]))} instead of {list(shape)}"
            for name, shape in shapes.items()
            if name in arrays and np.shape(arrays[name]) != tuple(shape)
        ),
    )


def require_same(what: str, shapes: Mapping[str, Iterable[int]], arrays: Mapping[str, Any]) -> None:
    """Raise unless the arrays have exactly the wanted names and shapes.

    Raises:
        InputError: "these are not {what}", with the missing, left over and mis-shaped arrays.
    """
    difference = compare(shapes, arrays)
    if difference:
        raise InputError(f"these are not {what}: {difference}")


def some(names: Iterable[str], most: int = LISTED) -> str:
    """The first names, on one line and printable."""
    names = list(names)
    return ", ".join(map(printable, names[:most])) + (", …" if len(names) > most else "")


class Entry(NamedTuple):
    """One of our variables and its place in PyTorch.

    path: our path: collection, modules, name.
    key: key in the state_dict.
    shape: shape of our array.
    torch_shape: shape of PyTorch's array.
    """

    path: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    torch_shape: tuple[int, ...]


def entries(variables: Mapping[str, Any], table: Table) -> tuple[Entry, ...]:
    """The entries of variables {"params", "batch_stats"}, arrays or their shapes, by a table of names."""
    return tuple(
        Entry(path, torch_key(path[1:], table), leaf.shape, _torch_shape(path, leaf.shape))
        for path, leaf in leaves(variables).items()
    )


def leaves(variables: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """Parameters and statistics by path: collection, modules, name."""
    return flatten_dict({name: variables[name] for name in _COLLECTIONS if name in variables})


def _torch_shape(path, shape):
    return to_torch_layout(path[-1], np.broadcast_to(np.float32(0), shape)).shape


def to_variables(
    what: str, wanted: Sequence[Entry], state_dict: Mapping[str, Any], *, unused: str = r"(?!)"
) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} as float32 numpy arrays.

    Args:
        what: description of the entries for the error.
        wanted: all entries.
        state_dict: arrays or CPU tensors by key; batch counters are not read.
        unused: regular expression of further keys that are not read.

    Raises:
        InputError: left over, missing or mis-shaped entries, which are listed.
    """
    pattern = re.compile(unused)
    read = {k: v for k, v in state_dict.items() if not k.endswith(COUNTER) and not pattern.match(k)}
    require_same(what, {entry.key: entry.torch_shape for entry in wanted}, read)
    variables = {
        entry.path: np.ascontiguousarray(
            from_torch_layout(entry.path[-1], np.asarray(state_dict[entry.key], np.float32))
        )
        for entry in wanted
    }
    return {"batch_stats": {}} | unflatten_dict(variables)


def to_state_dict(what: str, wanted: Sequence[Entry], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state_dict of variables, the inverse of `to_variables`, with batch counters of 0.

    Raises:
        InputError: left over, missing or mis-shaped variables, which are listed.
    """
    arrays = leaves(variables)
    require_same(
        what,
        {"/".join(entry.path): entry.shape for entry in wanted},
        {"/".join(path): leaf for path, leaf in arrays.items()},
    )
    state_dict = {}
    for entry in wanted:
        array = to_torch_layout(entry.path[-1], np.asarray(arrays[entry.path]))
        state_dict[entry.key] = np.ascontiguousarray(array)
        if entry.path[-1] == "var":
            state_dict[counter(entry.key)] = np.zeros((), np.int64)
    return state_dict


def counter(key: str) -> str:
    """The key of a norm's batch counter, from the key of its variance."""
    return key.replace("running_var", COUNTER)


def without_parallel(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries without the prefix `PARALLEL`, removed as often as all keys have it."""
    state_dict = dict(state_dict)
    while state_dict and all(key.startswith(PARALLEL) for key in state_dict):
        state_dict = {key.removeprefix(PARALLEL): value for key, value in state_dict.items()}
    return state_dict
