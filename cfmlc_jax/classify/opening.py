"""A classifier opened from a checkpoint: for evaluation, prediction, scripts and tests."""

import functools
from pathlib import Path
from typing import Any

import jax

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build
from cfmlc_jax.classify.build import Parts
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers import normalise
from cfmlc_jax.results import thresholds as files_of_thresholds
from cfmlc_jax.results.thresholds import Thresholds

# (branches in training, branches in evaluation) where evaluation has fewer, and the branches to rename. "self"
# uses the scores of patches as their attention too; "none" scores patches by the whole-image branch.
_FEWER = {("cross", "self"): {"patch": "score"}, ("cross", "none"): {}, ("self", "none"): {}}
# Fields of config.model that may differ: they change neither the variables nor their meaning.
_FREE = (
    "dtype",
    "precision",
    "remat",
    "norm_groups",
    "frozen",
    "frozen_norms",
    "cosine.momentum",
    "dot_product.tau_norm",
)

# Prefixes of the fields that determine the factual predictions of an image, besides the model; and its counterfactuals.
_PREDICTION = ("method", "patches.", "views.", "data.exif", "model.dot_product.tau_norm")
_EFFECTS = ("effect.null", "effect.owners", "effect.classes")


class Opened:
    """The classifier of a checkpoint. Its arrays are read at the first use of `model`.

    Attributes:
        path: of the checkpoint.
        config: the configuration to use it with.
        num_classes: k.
        class_names: in label order; None for a converted checkpoint without class names.
        class_counts: training images [k] of each class; None if the checkpoint does not hold them.
        parts: built from `config`.
        predicts_as_trained: `config` predicts as the checkpoint's own configuration does.
        effects_as_trained: its counterfactuals, too, are those of the checkpoint's own.
    """

    def __init__(
        self,
        path: Path,
        config,
        meta: dict,
        parts: Parts,
        branches: tuple[str, str],
        *,
        predicts_as_trained: bool = True,
        effects_as_trained: bool = True,
    ):
        self.path, self.config, self.parts = path, config, parts
        self.predicts_as_trained, self.effects_as_trained = predicts_as_trained, effects_as_trained
        self.num_classes = checkpoints.num_classes(meta)
        self.class_names: list[str] | None = meta["class_names"]
        self.class_counts: list[int] | None = meta.get("class_counts")
        self._branches = branches

    @functools.cached_property
    def model(self) -> dict[str, Any]:
        """{"variables", "average", "mean_colour"} on the mesh, without branches that `config` does not use.

        Raises:
            InputError: the arrays cannot be read, or are of another model.
        """
        abstract = build.model_item(self.config, self.parts)
        if self._branches not in _FEWER:
            return checkpoints.read_model(self.path, abstract)
        names = _FEWER[self._branches]
        arrays = checkpoints.read_part(self.path, _renamed(abstract, names))
        return _renamed(arrays, {stored: wanted for wanted, stored in names.items()})

    @functools.cached_property
    def thresholds(self) -> Thresholds | None:
        """The thresholds that were fitted to the checkpoint.

        None if there are none, for the single-label task, or if `config` predicts otherwise than they were fitted to;
        without those of effects if only these are others.

        Raises:
            InputError: their file is damaged, or of other classes.
        """
        if self.config.task == "single_label" or not self.predicts_as_trained:
            return None
        stored = files_of_thresholds.read(self.path, self.class_names)
        return stored if stored is None or self.effects_as_trained else stored.without_effects()


def open(path: Path, config=None, *, batch_size: int | None = None, in_float32: bool = False) -> Opened:
    """The classifier of a checkpoint.

    Args:
        path: a checkpoint, or the workdir of a run for its best checkpoint.
        config: the configuration to use it with; None: the checkpoint's own. Its `method` and
            `patches.branches` may ask for fewer branches than were trained. "auto" as its `data.normalise` is the
            checkpoint's.
        batch_size: images per batch, rounded up to a multiple of the present devices. It replaces the batch
            sizes and the mesh of the configuration, which were chosen for other devices. None keeps them.
        in_float32: compute in float32, whatever the checkpoint's `model.dtype`.

    Raises:
        InputError: there is no such checkpoint; it cannot be read; it holds a backbone only; its model is
            not that of `config`; or a newer version of this package wrote it.
    """
    path = checkpoints.find(path)
    meta = checkpoints.read_meta(path)
    with checkpoints.understanding(path, meta):
        system = configs.system(meta["config"])
        if system == configs.CLASSIFIER:
            stored = configs.from_json(meta["config"])
    if system == configs.REGIONS:
        raise InputError(
            f"checkpoint {path} is of a classifier of stored regions, which takes no images; give one of images"
        )
    if system != configs.CLASSIFIER:
        raise InputError(
            f"checkpoint {path} is of a generator, not of a classifier; a run of system {system!r} "
            "has the workdirs of its classifiers in its own"
        )
    checkpoints.require_head(path, meta)
    config = stored if config is None else _with_normalisation_of(stored, config)
    branches = _require_same_model(path, stored, config)
    alike = {
        "predicts_as_trained": _fields(stored, _PREDICTION) == _fields(config, _PREDICTION),
        "effects_as_trained": _fields(stored, _EFFECTS) == _fields(config, _EFFECTS),
    }
    if batch_size is not None:
        config = _on_these_devices(config, batch_size)
    if in_float32:
        config = configs.replaced(config, {"model.dtype": "float32"})
    parts = build.create(config, checkpoints.num_classes(meta))
    return Opened(path, config, meta, parts, branches, **alike)


def _with_normalisation_of(stored, config):
    """The configuration with the checkpoint's data.normalise in place of "auto"."""
    if config.data.normalise != normalise.AUTO:
        return config
    return configs.replaced(config, {"data.normalise": stored.data.normalise})


def _require_same_model(path, stored, config) -> tuple[str, str]:
    """The branches in training and in use. Raise unless the rest of the model is the same.

    Raises:
        InputError: names the fields that differ.
    """
    old, new = _model_fields(stored), _model_fields(config)
    branches = old["patches.branches"], new["patches.branches"]
    if branches in _FEWER:
        old["patches.branches"] = new["patches.branches"]
    changes = configs.differences(old, new)
    if changes:
        raise InputError(
            f"checkpoint {path} is of another model ({'; '.join(changes)}); set these fields to the checkpoint's"
        )
    return branches


def _model_fields(config):
    """The fields that determine the variables and their meaning."""
    fields = {
        f"model.{name}": value
        for name, value in configs.flat(configs.to_json(config.model)).items()
        if name not in _FREE
    }
    return fields | {
        "data.normalise": config.data.normalise,
        "patches.branches": configs.branches(config),
        "patches.map": configs.patch_map(config),
        "patches.pooling": config.patches.pooling,
    }


def _fields(config, prefixes):
    """The fields of a configuration by dotted name, of these prefixes."""
    fields = configs.flat(configs.to_json(config))
    return {name: value for name, value in fields.items() if name.startswith(prefixes)}


def _renamed(tree, names):
    """Nested dicts with some keys renamed."""
    if not isinstance(tree, dict):
        return tree
    return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}


def _on_these_devices(config, batch_size):
    """The configuration with the mesh and the batch sizes for the present devices."""
    devices = jax.device_count()
    config.unlock()
    config.mesh.fsdp = 1
    config.train.batch_size = config.evaluate.batch_size = -(-batch_size // devices) * devices
    return config.lock()
