"""What one part of the program adds to the configuration, and how numbers and names are checked."""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cfmlc_jax.config import schema
from cfmlc_jax.errors import InputError

# Steps and places are counted in int32; the largest float32 is 3.4e38.
_LARGEST = {int: 2**31 - 1, float: 1e38}


class Bounds(NamedTuple):
    """Range of a number.

    least: the least value.
    most: the largest value; None: the largest that arithmetic has.
    why: of the largest value, for the error; it follows the number.
    open: `least` itself is excluded.
    """

    least: float = 0
    most: float | None = None
    why: str = ""
    open: bool = False


PIXELS = Bounds(1, 8192, " pixels: a view of more takes a gigabyte in float32")


class Use(NamedTuple):
    """Fields, or sections with a point behind them, and whether a run reads them."""

    fields: tuple[str, ...]
    used: bool


class Part(NamedTuple):
    """A part of the configuration: the common fields, or those of one system.

    sections: field of the top level -> its default, made anew at every call.
    bounds: dotted name of a number -> its range; of other numbers, 0 and more.
    choices: () -> dotted name -> the values allowed, read from the registries at the call.
    paths: dotted names of fields that are a file or folder.
    neutral: beginnings of dotted names of fields that say where and how fast a run goes, or what is
        evaluated, but not what it learns.
    unique: dotted names of tuples in which nothing may occur twice.
    expand: (config) -> None; writes out short forms of values.
    check: (config) -> None; raises an InputError for fields that cannot be built together.
    check_training: (config) -> None; raises an InputError for what training would waste its time on.
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
    """The value of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def uses_of(section: str, fields: dict[str, tuple[str, ...]], chosen: str) -> list[Use]:
    """The use of each field that some entries of a registry read.

    Args:
        section: of the configuration, in which the fields are.
        fields: name of the entry -> the fields it reads, sections with a point behind them.
        chosen: name of the run's entry.
    """
    every = dict.fromkeys(name for names in fields.values() for name in names)
    return [Use((f"{section}.{name}",), name in fields[chosen]) for name in every]


def require_number(name: str, value: Any, bounds: Bounds) -> None:
    """Raise unless a number, or all of a tuple, is in its range; other values pass.

    Raises:
        InputError: a number that is not finite or out of range.
    """
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _require(f"config.{name} {'has' if isinstance(value, tuple) else 'is'}", number, bounds)


def _require(subject, number, bounds):
    least, most = bounds.least, _LARGEST[type(number)] if bounds.most is None else bounds.most
    begin = f"{subject} {schema.shown(number)}; it must be"
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"{begin} a finite number")
    inside = least < number <= most if bounds.open else least <= number <= most
    if inside:
        return
    if bounds.open and (number <= least or bounds.most is not None):
        raise InputError(f"{begin} above {least}{'' if bounds.most is None else f' and at most {most}'}")
    if isinstance(number, float) and bounds.most is not None:
        raise InputError(f"{begin} in [{least}, {most}]")
    if number < least:
        raise InputError(f"{begin} at least {least}")
    raise InputError(f"{begin} at most {most}{bounds.why}")


def require_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless a value, or all of a tuple, is among the choices; numbers of a field that takes both pass.

    Raises:
        InputError: another value, with the nearest choice.
    """
    names = tuple(choices)
    for each in value if isinstance(value, tuple) else (value,):
        if each not in names and not isinstance(each, float):
            near = difflib.get_close_matches(str(each), names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(name or "''" for name in names)
            raise InputError(f"config.{name} {each!r} is not one of {listed}{hint}")


def require_unique(name: str, values: Sequence[Any]) -> None:
    """Raise if a value occurs twice.

    Raises:
        InputError: it does.
    """
    twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
    if twice is not None:
        raise InputError(f"config.{name} has {twice} twice; leave one of them out")
