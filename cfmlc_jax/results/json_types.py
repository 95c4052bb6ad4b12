"""Conversion of dataclasses to JSON types and back, by the type hints of their fields.

Errors name the place in the file. A field is written by its name. A field that older versions wrote by another
name has the type `Annotated[…, Formerly("name")]`; a field that a file may lack has a default. A class with a
different form in files defines `to_json` and `from_json`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from cfmlc_jax.results.predictions import Prediction


class FormatError(ValueError):
    """A value has the wrong type; the message starts with its place in the file."""


@dataclasses.dataclass(frozen=True)
class Formerly:
    """The name by which older versions wrote a field."""

    name: str


def to_json(value: Any) -> Any:
    """A value as JSON types: dicts, lists, strings and numbers."""
    if isinstance(value, Prediction):
        return value.name
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return fields_to_json(value)
    if isinstance(value, Mapping):
        return {to_json(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return value


def fields_to_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, as JSON types."""
    return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}


def from_json(kind: Any, value: Any, place: str) -> Any:
    """The value of type `kind` whose `to_json` is `value`.

    Args:
        kind: a dataclass, a named tuple (a list in JSON), `Prediction`, str, int, float, bool, or a list, a
            dict or a union with None of these types.
        value: JSON types, from a file.
        place: of the value in the file, for error messages.

    Raises:
        FormatError: the value does not fit the type.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_json(arguments[0], value, place)
    if kind is Prediction:
        return _prediction(value, place)
    if hasattr(kind, "from_json"):
        return kind.from_json(value, place)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return kind(**fields_from_json(kind, value, place))
    if origin is dict:
        entries = require_object(value, place).items()
        return {
            from_json(arguments[0], key, place): from_json(arguments[1], inner, f"{place}.{key}")
            for key, inner in entries
        }
    if origin is list:
        return [from_json(arguments[0], inner, f"{place}.{i}") for i, inner in enumerate(_list(value, place))]
    if hasattr(kind, "_fields"):
        return _named_tuple(kind, value, place)
    return _plain(kind, value, place)


def fields_from_json(kind: Any, value: Any, place: str) -> dict[str, Any]:
    """The fields of a dataclass by name, from an object; further keys of the object are ignored.

    Raises:
        FormatError: the value is not an object, lacks a field without a default, or a field has another type.
    """
    entries = require_object(value, place)
    hints, annotated = typing.get_type_hints(kind), typing.get_type_hints(kind, include_extras=True)
    keys, missing = {}, []
    for field in dataclasses.fields(kind):
        key = next((key for key in _keys(field.name, annotated[field.name]) if key in entries), None)
        if key is not None:
            keys[field.name] = key
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            missing.append(field.name)
    require_keys(entries, missing, place)
    return {name: from_json(hints[name], entries[key], f"{place}.{key}") for name, key in keys.items()}


def _keys(name, hint) -> Iterator[str]:
    """The names of a field in files, the present name first."""
    yield name
    yield from (extra.name for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Formerly))


def require_object(value: Any, place: str) -> dict[str, Any]:
    """The same value, checked to be an object (a dict).

    Raises:
        FormatError: it is not an object.
    """
    if not isinstance(value, dict):
        raise FormatError(f"{place} is {_shown(value)}, not an object")
    return value


def require_keys(entries: Mapping[Any, Any], names: Any, place: str) -> None:
    """Raise unless all names are keys.

    Raises:
        FormatError: lists the missing names.
    """
    missing = [f"'{name}'" for name in names if name not in entries]
    if missing:
        raise FormatError(f"{place} has no {', '.join(missing)}")


def _prediction(value, place):
    try:
        return Prediction.parse(value)
    except (ValueError, AttributeError) as error:
        raise FormatError(f"{place}: {_shown(value)} is not the name of a prediction") from error


def _list(value, place):
    if not isinstance(value, list):
        raise FormatError(f"{place} is {_shown(value)}, not a list")
    return value


def _named_tuple(kind, value, place):
    names = kind._fields
    if len(_list(value, place)) != len(names):
        raise FormatError(f"{place} is {_shown(value)}, not [{', '.join(names)}]")
    return kind(*(from_json(float, part, place) for part in value))


def _plain(kind, value, place):
    """The value, checked to be of type str, int, float or bool."""
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(f"{place} is {_shown(value)}, not {words}")
    return value


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
