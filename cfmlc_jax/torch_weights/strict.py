"""Named arrays, compared and converted strictly: whatever does not fit is an error, and is listed.

Where a variable of ours is in PyTorch is an `Entry`; what differs between the arrays that are wanted and those
that are there is a `Difference`. All converters use both.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.models.torch_names import Table, from_torch_layout, to_torch_layout, torch_key

LISTED = 12  # at most so many names of each kind in an error's one line
COUNTER = "num_batches_tracked"  # ends the key of the batches that a norm has seen, which nothing reads
PARALLEL = "module."  # what parallel training puts before every key
_COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class Difference:
    """What keeps arrays from being those that are wanted: names by kind, mis-shaped ones with both shapes.

    It is true where there is a difference; as text it is "2 missing: a, b; 1 left over: c".
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
        """The same without missing and left over names in which one of the regular expressions is found."""
        if not patterns:
            return self
        allowed = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
        missing, left_over = (
            tuple(name for name in names if not allowed.search(name))
            for names in (self.missing, self.left_over)
        )
        return dataclasses.replace(self, missing=missing, left_over=left_over)


def compare(shapes: Mapping[str, Iterable[int]], arrays: Mapping[str, Any]) -> Difference:
    """How arrays by name, or what else has a shape, differ from the shapes that are wanted."""
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
    """Raise unless there is an array of each shape and no other.

    Raises:
        InputError: "these are not {what}", with all that is missing, left over and mis-shaped.
    """
    difference = compare(shapes, arrays)
    if difference:
        raise InputError(f"these are not {what}: {difference}")


def some(names: Iterable[str], most: int = LISTED) -> str:
    """The first names, on one line whatever their characters are."""
    names = list(names)
    return ", ".join(map(printable, names[:most])) + (", …" if len(names) > most else "")


class Entry(NamedTuple):
    """A variable of ours and where it is in PyTorch.

    path: collection, modules, name.
    key: in the state_dict.
    shape: of ours.
    torch_shape: with PyTorch's axes.
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
        what: whose entries they are, for the error.
        wanted: all of them.
        state_dict: arrays or CPU tensors by key; counters of batches are not read.
        unused: a regular expression of further keys that are not read.

    Raises:
        InputError: left over, missing or mis-shaped entries, listed.
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
    """The state_dict of variables, the inverse of `to_variables`. Counters of batches are 0.

    Raises:
        InputError: left over, missing or mis-shaped variables, listed.
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
    """The key of the batches that a norm has seen, beside that of its variance."""
    return key.replace("running_var", COUNTER)


def without_parallel(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries by keys without `PARALLEL`, as often as all of them have it."""
    state_dict = dict(state_dict)
    while state_dict and all(key.startswith(PARALLEL) for key in state_dict):
        state_dict = {key.removeprefix(PARALLEL): value for key, value in state_dict.items()}
    return state_dict
