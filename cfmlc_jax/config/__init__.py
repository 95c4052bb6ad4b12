"""The configuration: its parts, and what can be done with it.

The fields, each once with its default and what it means, are in config/fields.py (common ones) and
config/classifier.py (of the system of classifiers). The defaults are the paper's recipe for COCO
2014 (MLC-PAT); files in configs/ change what differs. Configurations that older versions stored are
read by config/older.py.
"""

import json
from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax import files
from cfmlc_jax.config import classifier, fields, older, part, schema
from cfmlc_jax.config.classifier import branches, branches_of, patch_map
from cfmlc_jax.config.fields import require_splits
from cfmlc_jax.config.part import field
from cfmlc_jax.errors import InputError

__all__ = [
    "PATHS",
    "branches",
    "branches_of",
    "completed",
    "default",
    "differences",
    "field",
    "flat",
    "from_json",
    "patch_map",
    "require_splits",
    "require_trainable",
    "to_json",
    "translated",
    "unused",
    "validate",
]

# Another system adds its part here.
PARTS = (fields.PART, classifier.PART)
# Fields that are a file or folder.
PATHS = tuple(name for each in PARTS for name in each.paths)


def default() -> ConfigDict:
    """Every field with its default, unlocked: a config file changes some and returns the whole."""
    config = ConfigDict()
    for each in PARTS:
        for name, make in each.sections.items():
            config[name] = make()
    return config


def validate(config: Any) -> ConfigDict:
    """The configuration of a command, as a copy, locked, if its fields suit each other.

    Raises:
        InputError: fields that are missing or unknown, a value of another type or out of range, or
            fields that contradict each other.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"the configuration is of type {type(config).__name__}; begin with cfmlc_jax.config.default() and return it"
        )
    checked = _checked(config)
    schema.require_complete(checked, config)
    require_splits(checked.data)
    for each in PARTS:
        for name in each.unique:
            part.require_unique(name, field(checked, name))
    return checked


def require_trainable(config: ConfigDict) -> None:
    """Raise if training by a validated configuration would waste its time, or leave something untrained.

    A checkpoint that was trained so can still be evaluated and used.

    Raises:
        InputError: fields that contradict each other.
    """
    for each in PARTS:
        each.check_training(config)


def unused(config: ConfigDict) -> list[str]:
    """Names of the fields that differ from their defaults, though nothing in the run looks at them."""
    values, defaults = flat(to_json(config)), flat(to_json(default()))
    idle = tuple(name for each in PARTS for use in each.uses(config) if not use.used for name in use.fields)
    sections = tuple(name for name in idle if name.endswith("."))
    return [
        name
        for name, value in values.items()
        if (name in idle or name.startswith(sections)) and value != defaults[name]
    ]


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as plain JSON types (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def from_json(stored: Any) -> ConfigDict:
    """The configuration that `to_json` wrote, on top of today's defaults, checked and locked.

    One that an older version wrote is translated (`older`).

    Raises:
        InputError: a field that no version has, or a value that this one does not take.
    """
    if not isinstance(stored, dict):
        raise InputError(f"the stored configuration is of type {type(stored).__name__}, not one of fields")
    return _checked(older.translate(stored))


def translated(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields that any version's `to_json` wrote, unchecked, under today's names."""
    return older.translate(stored)


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """Flat fields of a stored configuration under today's names, with today's defaults for fields that it lacks."""
    return flat(to_json(default())) | flat(older.translate(stored))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """ "name: old -> new" of every field that may not change between a run and its continuation."""
    old, new = flat(old), flat(new)
    neutral = tuple(name for each in PARTS for name in each.neutral)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if not name.startswith(neutral) and not _agree(name, old.get(name), new.get(name))
    ]


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by dotted name."""
    named = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            named.update(flat(value, f"{prefix}{key}."))
        else:
            named[prefix + key] = value
    return named


def _agree(name, old, new):
    if name in PATHS and isinstance(old, str) and isinstance(new, str):
        return files.same_path(old, new)
    return old == new


def _checked(given):
    """Fields on top of the defaults, locked, each by itself, and what cannot be built by others of them."""
    config = default()
    schema.fill(config, given, older.moved)
    bounds = {name: limits for each in PARTS for name, limits in each.bounds.items()}
    for name in schema.names(config):
        part.require_number(name, field(config, name), bounds.get(name, part.Bounds()))
    for each in PARTS:
        each.expand(config)
    for each in PARTS:
        for name, choices in each.choices().items():
            part.require_choice(name, field(config, name), choices)
    for name in PATHS:
        files.require_path(field(config, name), f"config.{name}")
    for each in PARTS:
        each.check(config)
    return config.lock()
