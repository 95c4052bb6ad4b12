"""The configuration of a run: defaults, validation, and conversion from and to JSON.

The fields with their defaults and meanings are, for classifiers, in config/fields.py and config/classifier.py.
Their defaults are the paper's recipe for COCO 2014 (MLC-PAT). For counterfactual generative networks they are in
config/cgn.py, and for their form for ImageNet in config/cgn_imagenet.py; for a detector's regions in config/regions.py. The files in configs/ change some of them. config/older.py translates configurations that older
versions stored.
"""

import json
from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax import files
from cfmlc_jax.config import cgn, cgn_imagenet, classifier, fields, older, part, regions, schema
from cfmlc_jax.config.classifier import branches, branches_of, micro_batches, patch_map, tried
from cfmlc_jax.config.fields import require_splits
from cfmlc_jax.config.part import field
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue

__all__ = [
    "branches",
    "branches_of",
    "completed",
    "default",
    "differences",
    "field",
    "flat",
    "from_json",
    "micro_batches",
    "on_platform",
    "patch_map",
    "paths",
    "replaced",
    "require_splits",
    "require_trainable",
    "system",
    "to_json",
    "translated",
    "tried",
    "unused",
    "validate",
]

CLASSIFIER, CGN, CGN_IMAGENET, REGIONS = "classifier", "cgn", "cgn_imagenet", "regions"
# What a run trains, and the parts of its configuration. To add a system, add it here.
SYSTEMS = {
    CLASSIFIER: (fields.PART, classifier.PART),
    CGN: (cgn.PART,),
    CGN_IMAGENET: (cgn_imagenet.PART,),
    REGIONS: (regions.PART,),
}


def system(config: Any) -> str:
    """What a configuration trains, a key of `SYSTEMS`; one without a field `system` trains a classifier.

    Raises:
        InputError: an unknown system.
    """
    name = config.get("system", CLASSIFIER)
    part.require_choice("system", name, SYSTEMS)
    return name


def default(system: str = CLASSIFIER) -> ConfigDict:
    """All fields of a system with their defaults, unlocked. A config file changes some of them and returns the result."""
    config = ConfigDict()
    for each in SYSTEMS[system]:
        for name, make in each.sections.items():
            config[name] = make()
    return config


def validate(config: Any) -> ConfigDict:
    """A checked and locked copy of the configuration of a command.

    Raises:
        InputError: a field is missing or unknown, a value has another type or is out of range, or fields
            contradict each other.
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"the configuration is of type {type(config).__name__}; start from cfmlc_jax.config.default() and return it"
        )
    checked = _checked(config)
    schema.require_complete(checked, config)
    if system(checked) == CLASSIFIER:
        require_splits(checked.data)
    for each in _parts(checked):
        for name in each.unique:
            part.require_unique(name, field(checked, name))
    return checked


def replaced(config: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
    """A copy of a validated configuration with other values of some fields, by dotted name; checked and locked.

    Raises:
        InputError: a value is out of range, or fields contradict each other.
    """
    stored = to_json(config)
    for name, value in fields.items():
        section, _, last = name.rpartition(".")
        (field(stored, section) if section else stored)[last] = value
    return from_json(stored)


def on_platform(config: ConfigDict, platform: str) -> ConfigDict:
    """The validated configuration with the types that "auto" stands for on a platform.

    A run stores them, so that its checkpoints are used as they were trained, wherever that is.

    Args:
        config: validated.
        platform: of the devices: "cpu", "gpu" or "tpu".
    """
    name = "generator.dtype" if system(config) == CGN_IMAGENET else "model.dtype"
    if system(config) in (CGN, REGIONS) or field(config, name) != catalogue.AUTO:
        return config
    return replaced(config, {name: catalogue.compute_dtype(catalogue.AUTO, platform).name})


def require_trainable(config: ConfigDict) -> None:
    """Raise if training by a validated configuration would be useless, or leave a part untrained.

    Not part of `validate`, so that older checkpoints with such a configuration can still be evaluated.

    Raises:
        InputError: names the fields and what to set instead.
    """
    for each in _parts(config):
        each.check_training(config)


def paths(config: ConfigDict) -> list[str]:
    """Names of the fields whose value is the path of a file or folder."""
    return [name for each in _parts(config) for name in each.paths]


def unused(config: ConfigDict) -> list[str]:
    """Names of the fields that differ from their defaults although nothing in the run reads them."""
    values, defaults = flat(to_json(config)), flat(to_json(default(system(config))))
    unread = tuple(
        name for each in _parts(config) for use in each.uses(config) if not use.used for name in use.fields
    )
    sections = tuple(name for name in unread if name.endswith("."))
    return [
        name
        for name, value in values.items()
        if (name in unread or name.startswith(sections)) and value != defaults[name]
    ]


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as plain JSON types (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def from_json(stored: Any) -> ConfigDict:
    """The configuration that `to_json` of this or an older version wrote, checked and locked.

    Fields that it lacks get the present defaults.

    Raises:
        InputError: a field that no version has, or a value that this version does not accept.
    """
    if not isinstance(stored, dict):
        raise InputError(f"the stored configuration is of type {type(stored).__name__}, not a dict of fields")
    return _checked(older.translate(stored))


def translated(stored: dict[str, Any]) -> dict[str, Any]:
    """The fields that `to_json` of any version wrote, under their present names; not checked."""
    return older.translate(stored)


def completed(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration as flat fields with their present names; missing fields get the present defaults."""
    return flat(to_json(default(system(stored)))) | flat(older.translate(stored))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """ "name: old -> new" for each field that differs and may not change when a run is resumed."""
    neutral = tuple(name for each in _parts(new) for name in each.neutral)
    old, new = flat(old), flat(new)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if not name.startswith(neutral) and not _agree(name, old.get(name), new.get(name))
    ]


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as a flat dict by dotted names."""
    named = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            named.update(flat(value, f"{prefix}{key}."))
        else:
            named[prefix + key] = value
    return named


# Fields whose path may be an address in a bucket.
IN_BUCKETS = ("data.root", "init_from", "data.train", "data.val", "data.annotations")
# Paths of all systems.
_PATHS = {name for parts in SYSTEMS.values() for each in parts for name in each.paths}


def _parts(config):
    return SYSTEMS[system(config)]


def _agree(name, old, new):
    if name in _PATHS and isinstance(old, str) and isinstance(new, str):
        return files.same_path(old, new)
    return old == new


def _checked(fields):
    """The configuration of these fields and defaults, locked. Checks each value, and whether they fit together."""
    config = default(system(fields))
    parts = _parts(config)
    schema.fill(config, fields, older.moved)
    bounds = {name: limits for each in parts for name, limits in each.bounds.items()}
    for name in schema.names(config):
        part.require_number(name, field(config, name), bounds.get(name, part.Bounds()))
    for each in parts:
        each.expand(config)
    for each in parts:
        for name, choices in each.choices().items():
            part.require_choice(name, field(config, name), choices)
    for name in paths(config):
        files.require_path(field(config, name), f"config.{name}", bucket=name in IN_BUCKETS)
    for each in parts:
        each.check(config)
    return config.lock()
