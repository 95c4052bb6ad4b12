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

# Branches as trained and as evaluated where the evaluation has fewer: patches are then weighed by their
# own scores, or scored by the whole's branch. Names of branches that change.
_FEWER = {("cross", "self"): {"patch": "score"}, ("cross", "none"): {}, ("self", "none"): {}}
# Fields of config.model that decide nothing about which variables there are, and what they mean.
_FREE = ("dtype", "norm_groups", "frozen", "cosine.momentum", "dot_product.tau_norm")


class Opened:
    """A checkpoint's classifier; its arrays are read when `model` is asked for.

    Attributes:
        path: of the checkpoint.
        config: as it is used.
        num_classes: k.
        class_names: in label order; None where the checkpoint, a converted one, does not know them.
        class_counts: training images [k] of each class, where the checkpoint says so, else None.
        parts: of the configuration.
    """

    def __init__(self, path: Path, config, meta: dict, parts: Parts, branches: tuple[str, str]):
        self.path, self.config, self.parts = path, config, parts
        self.num_classes = checkpoints.num_classes(meta)
        self.class_names: list[str] | None = meta["class_names"]
        self.class_counts: list[int] | None = meta.get("class_counts")
        self._branches = branches

    @functools.cached_property
    def model(self) -> dict[str, Any]:
        """{"variables", "average", "mean_colour"}, on the mesh, without the branches that the configuration lacks.

        Raises:
            InputError: arrays that cannot be read, or are another model's.
        """
        abstract = build.model_item(self.config, self.parts)
        if self._branches not in _FEWER:
            return checkpoints.read_model(self.path, abstract)
        names = _FEWER[self._branches]
        arrays = checkpoints.read_part(self.path, _renamed(abstract, names))
        return _renamed(arrays, {stored: wanted for wanted, stored in names.items()})


def open(path: Path, config=None, *, batch_size: int | None = None) -> Opened:
    """The classifier of a checkpoint.

    Args:
        path: a checkpoint, or a run for its best.
        config: how it is used; None: as it was trained. Its model may have fewer branches for patches than were
            trained, by `method` and `patches.branches`.
        batch_size: images at once, rounded up to a multiple of the devices here, in place of the
            sizes and the mesh that were chosen for the devices of the training; None leaves them.

    Raises:
        InputError: no such checkpoint, one that cannot be read, is a backbone alone, or of another model than
            the configuration's.
    """
    path = checkpoints.find(path)
    meta = checkpoints.read_meta(path)
    checkpoints.require_head(path, meta)
    stored = configs.from_json(meta["config"])
    config = stored if config is None else config
    branches = _require_same_model(path, stored, config)
    if batch_size is not None:
        config = _on_these_devices(config, batch_size)
    return Opened(path, config, meta, build.create(config, checkpoints.num_classes(meta)), branches)


def _require_same_model(path, stored, config) -> tuple[str, str]:
    """Branches as trained and as used; raise unless the rest of the model is the same.

    Raises:
        InputError: with the fields that differ.
    """
    old, new = _of_variables(stored), _of_variables(config)
    branches = old["patches.branches"], new["patches.branches"]
    if branches in _FEWER:
        old["patches.branches"] = new["patches.branches"]
    changes = configs.differences(old, new)
    if changes:
        raise InputError(f"checkpoint {path} is of another model ({'; '.join(changes)})")
    return branches


def _of_variables(config):
    """The fields that decide which variables there are, and what they mean."""
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


def _renamed(tree, names):
    """Nested dicts with some of the keys under other names."""
    if not isinstance(tree, dict):
        return tree
    return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}


def _on_these_devices(config, batch_size):
    """The configuration without what was chosen for the devices that it was trained on."""
    devices = jax.device_count()
    config.unlock()
    config.mesh.fsdp = 1
    config.train.batch_size = config.evaluate.batch_size = -(-batch_size // devices) * devices
    return config.lock()
