"""Fields and values of older versions. Stored configurations are translated; new ones must use the new names.

A stored configuration of a classifier is of an older version if it lacks the field `task`.
"""

from collections.abc import Callable
from typing import Any

# Fields that were renamed; their values are unchanged.
RENAMED = {
    "data.longtail.digits": "data.longtail.largest",
    "data.longtail.seed": "data.longtail.subset_seed",
    "views.grids": "patches.grids",
    "views.overlap": "patches.overlap",
    "model.pooling": "patches.pooling",
    "model.groups": "model.ml_decoder.queries",
    "model.statistics": "data.normalise",
    "model.cosine.mu": "model.cosine.momentum",
    "evaluate.tau_norm": "model.dot_product.tau_norm",
    "optim.momentum": "optim.sgd.momentum",
    "optim.schedule": "optim.sgd.schedule",
    "optim.warmup_epochs": "optim.sgd.warmup_epochs",
    "optim.milestones": "optim.sgd.milestones",
    "optim.drop": "optim.sgd.drop",
    "train.null": "train.mask_with",
    "train.null_rate": "train.mask_rate",
}
TRANSFORMS = {"": "squeeze", "padded": "padded_crop", "area": "area_crop"}
# The losses from which older versions inferred the single-label task.
SINGLE_LABEL = ("cross_entropy", "focal", "weighted_cross_entropy")

# A function of an old value and all old fields by dotted name -> new fields. If several old fields give the same
# new field, the last in `RECAST` wins.
Recast = Callable[[Any, dict[str, Any]], dict[str, Any]]


def _patch_size(value, old):
    return {"patches.source": "device", "patches.size": value} if value != 0 else {}


def _cells(value, old):
    return {"patches.source": "map", "patches.map": value} if value != "" else {}


def _attention(value, old):
    return {"patches.branches": value} if value != "none" else {}


def _crop(value, old):
    return {"views.transform": TRANSFORMS.get(value, value) if isinstance(value, str) else value}


def _of_transform(name: str, *transforms: str) -> Recast:
    """For a field that each of the transforms now has in its section: it moves to the transform in use."""

    def recast(value, old):
        transform = _crop(old.get("views.crop", ""), old)["views.transform"]
        return {f"views.{transform}.{name}": value} if transform in transforms else {}

    return recast


def _mu_from_rate(value, old):
    return {"model.cosine.momentum": "schedule" if value is True else value} if value is not False else {}


def _latest(value, old):
    return {"evaluate.checkpoint": ("last" if value else "best") if isinstance(value, bool) else value}


def _tensorboard(value, old):
    return {"report.writers": ("jsonl", "tensorboard") if value is True else ("jsonl",)}


# Fields whose values changed too, with their new place in words, for error messages.
RECAST: dict[str, tuple[Recast, str]] = {
    "views.patch_size": (_patch_size, "config.patches.source 'device' and config.patches.size"),
    "model.cells": (_cells, "config.patches.source 'map' and config.patches.map"),
    "model.attention": (
        _attention,
        "config.patches.branches, of method 'pat_t'; the methods 'pat_i' and 'whole' have no such branches",
    ),
    "views.crop": (_crop, "config.views.transform"),
    "views.augment": (
        _of_transform("augment", *TRANSFORMS.values()),
        "a field of each transform: config.views.squeeze.augment, padded_crop.augment and area_crop.augment",
    ),
    "views.flip": (
        _of_transform("flip", "padded_crop", "area_crop"),
        "a field of each crop: config.views.padded_crop.flip and config.views.area_crop.flip",
    ),
    "views.jitter": (_of_transform("jitter", "area_crop"), "config.views.area_crop.jitter"),
    "model.cosine.mu_from_rate": (_mu_from_rate, "config.model.cosine.momentum 'schedule'"),
    "evaluate.latest": (_latest, "config.evaluate.checkpoint"),
}
# Fields that changed later, in the configurations of all systems.
RECAST_LATER: dict[str, tuple[Recast, str]] = {
    "report.tensorboard": (_tensorboard, "config.report.writers"),
}


def is_older(fields: dict[str, Any]) -> bool:
    """Whether stored fields are of a classifier, from a version without the field `task`."""
    return "task" not in fields and "system" not in fields


def translate(fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of stored fields with their present names. Fields of the present version are returned unchanged.

    Values that no version accepts are kept; the check of the configuration reports them by their new name.
    """
    later = [name for name in RECAST_LATER if _has(fields, name)]
    if not later and not is_older(fields):
        return fields
    fields = {key: _copied(value) for key, value in fields.items()}
    for name in later:
        recast_later, _ = RECAST_LATER[name]
        for present, value in recast_later(_take(fields, name), {}).items():
            _put(fields, present, value)
    if not is_older(fields):
        return fields
    loss = _get(fields, "loss.name")
    fields["task"] = "single_label" if loss in SINGLE_LABEL else "multi_label"
    if fields.get("method") == "asl":
        fields["method"] = "whole"
    if _get(fields, "model.head") == "":
        prefixed = str(_get(fields, "model.name")).startswith("q2l_")
        fields["model"]["head"] = "query2label" if prefixed else "linear"
    old = {name: _take(fields, name) for name in (*RENAMED, *RECAST) if _has(fields, name)}
    new = {RENAMED[name]: value for name, value in old.items() if name in RENAMED}
    for name, (recast, _) in RECAST.items():
        if name in old:
            new |= recast(old[name], old)
    for name, value in new.items():
        _put(fields, name, value)
    return fields


def moved(name: str, value: Any) -> str:
    """The error message for an old field in a new configuration: its new name; empty if it is not an old field."""
    if name in RENAMED:
        new, where = {RENAMED[name]: value}, f"config.{RENAMED[name]}"
    elif name in RECAST | RECAST_LATER:
        recast, where = (RECAST | RECAST_LATER)[name]
        new = recast(value, {})
    else:
        return ""
    text = f"config.{name} is now {where}"
    if name.startswith("views.") and name.rpartition(".")[2] in ("augment", "flip", "jitter"):
        return text
    settings = " and ".join(f"config.{each} to {setting!r}" for each, setting in new.items())
    return f"{text}; set {settings}" if settings and len(settings) < 200 else text


def _copied(value):
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _section(fields, name):
    """The section of a dotted name, or None if there is none, and the last part of the name."""
    *sections, leaf = name.split(".")
    for each in sections:
        fields = fields.get(each) if isinstance(fields, dict) else None
    return (fields if isinstance(fields, dict) else None), leaf


def _has(fields, name):
    section, leaf = _section(fields, name)
    return section is not None and leaf in section


def _get(fields, name):
    section, leaf = _section(fields, name)
    return None if section is None else section.get(leaf)


def _take(fields, name):
    section, leaf = _section(fields, name)
    return section.pop(leaf)


def _put(fields, name, value):
    """Set a dotted name. Do nothing if it is set, or if its section is not a dict; a later check reports that."""
    *sections, leaf = name.split(".")
    for each in sections:
        fields = fields.setdefault(each, {})
        if not isinstance(fields, dict):
            return
    fields.setdefault(leaf, value)
