"""Strict comparison of named arrays: whatever does not fit is an error, and is listed."""

from collections.abc import Iterable, Mapping

import numpy as np

from cfmlc_jax.errors import InputError

LISTED = 12  # at most so many names of each kind in an error's one line


def require_same(what: str, shapes: Mapping[str, Iterable[int]], arrays: Mapping) -> None:
    """Raise unless there is an array of each shape and no other.

    Raises:
        InputError: "these are not {what}", with all that is missing, left over and mis-shaped.
    """
    problems = {
        "missing": [key for key in shapes if key not in arrays],
        "left over": [key for key in arrays if key not in shapes],
        "mis-shaped": [
            f"{key} {list(np.shape(arrays[key]))} instead of {list(shape)}"
            for key, shape in shapes.items()
            if key in arrays and np.shape(arrays[key]) != tuple(shape)
        ],
    }
    listed = [f"{len(names)} {kind}: {some(names)}" for kind, names in problems.items() if names]
    if listed:
        raise InputError(f"these are not {what}: {'; '.join(listed)}")


def some(names: Iterable[str]) -> str:
    """The first `LISTED` names."""
    names = list(names)
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
