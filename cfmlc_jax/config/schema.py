"""Checks the structure and the types of a configuration against its default."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from cfmlc_jax.errors import InputError
from cfmlc_jax.files import forbidden_character

_ONE = {bool: "True or False", int: "a whole number", float: "a number", str: "a string"}
_MANY = {int: "whole numbers", float: "numbers", str: "strings"}
_EXAMPLES = {int: "(2,)", float: "(0.5,)", str: "('val',)"}


def fill(config: ConfigDict, fields: Any, moved: Callable[[str, Any], str]) -> None:
    """Set the values of nested `fields` in a default configuration; other values stay.

    An int is accepted for a float, and a list for a tuple. The elements of a tuple must have the type of the
    default's first element, or be strings if the default is empty. A field of type `object` accepts a number
    or a name.

    Args:
        config: the default; it is changed.
        fields: a ConfigDict, or a dict read from JSON.
        moved: a function of dotted name and value -> the error message if the field has moved, else "".

    Raises:
        InputError: a field is unknown, a value has another type, or a string contains control characters.
    """
    _fill(config, fields, "", tuple(names(config)), moved)


def require_complete(config: ConfigDict, fields: Any) -> None:
    """Raise unless nested `fields` contain every field of a default configuration.

    Raises:
        InputError: a field is missing.
    """
    missing = [name for name in names(config) if name not in set(names(fields))]
    if missing:
        raise InputError(
            f"config.{missing[0]} is missing; start from cfmlc_jax.config.default() and change what differs"
        )


def names(fields: Any, section: str = "") -> Iterator[str]:
    """The dotted names of all fields."""
    for key in fields:
        value = fields[key]
        if isinstance(value, dict | ConfigDict):
            yield from names(value, f"{section}{key}.")
        else:
            yield f"{section}{key}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown field: the most similar field, or where all fields are listed."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else "the files of cfmlc_jax/config list the fields"


def shown(value: Any) -> str:
    """A value as text for an error message: one line, shortened."""
    if isinstance(value, dict | ConfigDict):
        return "a section"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python's limit on the digits of whole numbers
        return "a number with thousands of digits"
    return text if len(text) < 80 else f"{text[:80]}…"


def _fill(config, fields, section, known, moved):
    for key in list(fields):
        name = f"{section}{key}"
        value = _value(name, fields, key)
        if key not in config:
            printed = name if name.isprintable() else shown(name)
            raise InputError(
                moved(name, value)
                or f"config.{printed} is not a field of this version of cfmlc_jax; {nearest(name, known)}"
            )
        if config.get_type(key) is object and isinstance(value, str):
            config[key] = _scalar(f"config.{name} is", value, str, _ONE[str])
        elif not isinstance(config[key], ConfigDict):
            config[key] = _typed(name, value, config[key])
        elif isinstance(value, dict | ConfigDict):
            _fill(config[key], value, f"{name}.", known, moved)
        else:
            inside = ", ".join(f"config.{name}.{field}" for field in list(config[key])[:2])
            raise InputError(
                f"config.{name} is {shown(value)}, but it is a section; set its fields: {inside}, …"
            )


def _value(name, fields, key):
    try:
        return fields[key]
    except config_dict.RequiredValueError as error:
        raise InputError(f"config.{name} is a placeholder without a value; set it") from error


def _typed(name, value, default):
    if not isinstance(default, tuple):
        return _scalar(f"config.{name} is", value, type(default), _ONE[type(default)])
    kind = type(default[0]) if default else str
    wanted = f"a tuple of {_MANY[kind]}, such as {_EXAMPLES[kind]}"
    if not isinstance(value, tuple | list):
        raise InputError(f"config.{name} is {shown(value)}; it must be {wanted}")
    return tuple(_scalar(f"config.{name} has", element, kind, wanted) for element in value)


def _scalar(subject, value, kind, wanted):
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError as error:
            raise InputError(f"{subject} {shown(value)}; the number is too large") from error
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{subject} {shown(value)}; it must be {wanted}")
    if kind is str and forbidden_character(value):
        raise InputError(
            f"{subject} {shown(value)}; it must not contain the character {forbidden_character(value)!r}"
        )
    return kind(value)
