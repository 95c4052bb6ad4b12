"""A part of the configuration, such as the fields of one system; and checks of numbers and names."""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cfmlc_jax.config import schema
from cfmlc_jax.errors import InputError

# Whole numbers must fit an int32, and the largest float32 is 3.4e38.
_LARGEST = {int: 2**31 - 1, float: 1e38}


class Bounds(NamedTuple):
    """The allowed range of a number.

    least: the smallest value.
    most: the largest value; None: limited by int32 or float32 only.
    why: a reason for `most`; the error message appends it to the number.
    open: `least` itself is not allowed.
    """

    least: float = 0
    most: float | None = None
    why: str = ""
    open: bool = False


PIXELS = Bounds(1, 8192, " pixels: a larger view takes more than a gigabyte in float32")


class Use(NamedTuple):
    """Names of fields, or of sections (with a final dot), and whether a run reads them."""

    fields: tuple[str, ...]
    used: bool


class Part(NamedTuple):
    """A part of the configuration: the common fields, or those of one system.

    sections: top-level field -> a function that creates its default.
    bounds: dotted name of a number -> its range. Numbers without an entry must be at least 0.
    choices: a function that returns the allowed values by dotted name. It reads the registries when called.
    paths: dotted names of fields whose value is the path of a file or folder.
    neutral: prefixes of dotted names of fields that do not change what a run learns, and so may change when
        it is resumed.
    unique: dotted names of tuples whose values must differ.
    expand: (config) -> None; replaces short forms of values.
    check: (config) -> None; raises an InputError if fields contradict each other.
    check_training: (config) -> None; raises an InputError if training would be useless.
    uses: (config) -> which fields a run reads.
    """

    sections: dict[str, Callable[[], Any]]
    bounds: dict[str, Bounds]
    choices: Callable[[], dict[str, Iterable[str]]]
    paths: tuple[str, ...]
    neutral: tuple[str, ...]
    unique: tuple[str, ...]
    expand: Callable[[ConfigDict], None]
    check: Callable[[ConfigDict], None]
    check_training: Callable[[ConfigDict], None]
    uses: Callable[[ConfigDict], Sequence[Use]]


def field(config: Any, name: str) -> Any:
    """The value of the field with a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def uses_of(section: str, fields: dict[str, tuple[str, ...]], chosen: str) -> list[Use]:
    """One `Use` for each field that entries of a registry read.

    Args:
        section: the section of the fields.
        fields: name of an entry -> the fields that it reads; sections have a final dot.
        chosen: name of the entry that the run uses.
    """
    every = dict.fromkeys(name for names in fields.values() for name in names)
    return [Use((f"{section}.{name}",), name in fields[chosen]) for name in every]


def require_number(name: str, value: Any, bounds: Bounds) -> None:
    """Raise unless a number, or every number of a tuple, is in its range. Other values are not checked.

    Raises:
        InputError: a number is not finite or out of range.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _require(f"config.{name} {'has' if isinstance(value, tuple) else 'is'}", number, bounds)


def _require(subject, number, bounds):
    least, most = bounds.least, _LARGEST[type(number)] if bounds.most is None else bounds.most
    start = f"{subject} {schema.shown(number)}; it must be"
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"{start} a finite number")
    inside = least < number <= most if bounds.open else least <= number <= most
    if inside:
        return
    if bounds.open and (number <= least or bounds.most is not None):
        raise InputError(f"{start} above {least}{'' if bounds.most is None else f' and at most {most}'}")
    if isinstance(number, float) and bounds.most is not None:
        raise InputError(f"{start} in [{least}, {most}]")
    if number < least:
        raise InputError(f"{start} at least {least}")
    raise InputError(f"{start} at most {most}{bounds.why}")


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless a value, or every value of a tuple, is among the choices. Floats are not checked.

    Raises:
        InputError: names the choices, and the most similar one.
    """
    names = tuple(choices)
    for each in value if isinstance(value, tuple) else (value,):
        if each not in names and not isinstance(each, float):
            near = difflib.get_close_matches(str(each), names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(name or "''" for name in names)
            raise InputError(f"config.{name} {each!r} is not one of {listed}{hint}")


def require_unique(name: str, values: Sequence[Any]) -> None:
    """Raise unless all values differ.

    Raises:
        InputError: a value occurs twice.
    """
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise InputError(f"config.{name} has {twice} twice; remove one of them")
