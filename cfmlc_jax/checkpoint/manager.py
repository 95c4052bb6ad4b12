"""Checkpoints of a run, by Orbax: latest and best kept, whole or not there.

A checkpoint is a folder of three items: "model" (variables, their average, mean colour: all that
prediction needs), "training" (the rest of the state) and "meta" (configuration, class names,
progress). The position in the data is the step: batches are a function of it, so there is no
iterator to save, and a run may go on with other workers, processes or devices.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from cfmlc_jax.errors import InputError, RunError

KEEP_LATEST = 2
# What reading a damaged checkpoint raises: missing files, cut JSON, chunks that don't decode.
_DAMAGED = (OSError, ValueError, KeyError, TypeError)


class Checkpoints:
    """The checkpoints in a folder, saved and restored by step.

    Saving is synchronous: the next step donates the state's buffers.
    """

    def __init__(self, folder: Path):
        self._folder = Path(folder).absolute()
        best = policies.BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(KEEP_LATEST), best]),
            best_fn=_rank,  # without it Orbax does not write the metrics
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=self._options)

    def save(self, step: int, *, model, training, meta: dict, rank: float | None) -> None:
        """Write one checkpoint; `rank` decides which is best, None for one that was not scored."""
        items = ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            training=ocp.args.StandardSave(training),
            meta=ocp.args.JsonSave(meta),
        )
        metrics = None if rank is None else {"rank": float(rank)}
        self._manager.save(step, args=items, metrics=metrics)
        self._manager.wait_until_finished()

    def restore_latest(self, *, model, training, warn: Callable[[str], None]) -> tuple[Any, Any, dict] | None:
        """The latest readable checkpoint's (model, training, meta); None if there is none.

        A damaged one is moved to the folder "damaged" beside the checkpoints, with a warning, and
        the one before is taken.

        Args:
            model: abstract arrays with shardings, as `save` got them.
            training: likewise.
            warn: told of every damaged checkpoint.

        Raises:
            RunError: there are checkpoints and none is readable.
        """
        items = ocp.args.Composite(
            model=ocp.args.StandardRestore(model),
            training=ocp.args.StandardRestore(training),
            meta=ocp.args.JsonRestore(),
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(step, args=items)
            except _DAMAGED as error:
                kept = self._set_aside(step)
                reason = " ".join(str(error).split())[:120]
                warn(
                    f"checkpoint {step} is damaged ({reason}); moved to {kept}, going on from the one before"
                )
                continue
            return restored.model, restored.training, restored.meta
        if steps:
            raise RunError(
                f"none of the checkpoints {steps} in {self._folder} is readable; start a new workdir"
            )
        return None

    def best_step(self) -> int | None:
        """Step of the best scored checkpoint, else the latest; None without any."""
        best = self._manager.best_step()
        return self._manager.latest_step() if best is None else best

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self._folder / str(step)

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()

    def _set_aside(self, step):
        target = self._folder.parent / "damaged" / str(step)
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            suffix = 1
            while target.exists():
                target = target.with_name(f"{step}.{suffix}")
                suffix += 1
            self.path(step).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")
        self._manager.reload()
        return target


def find(path: Path) -> Path:
    """The checkpoint that a path means: itself, a run's best, or the best of a folder of checkpoints.

    Raises:
        InputError: there is none.
    """
    path = Path(path).expanduser().absolute()
    if (path / "model").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir()):
        checkpoints = Checkpoints(folder)
        step = checkpoints.best_step()
        checkpoints.close()
        if step is not None:
            return checkpoints.path(step)
    if path.is_file():
        raise InputError(
            f"{path} is a file, not a checkpoint; scripts/convert_checkpoint.py converts those of PyTorch"
        )
    raise InputError(
        f"{path} is not a checkpoint, nor a run with checkpoints; give a workdir or a step's folder"
    )


def write(path: Path, *, model, meta: dict) -> None:
    """Make a checkpoint of its own that `find`, `read_model` and `read_meta` read; whole or not there.

    Args:
        path: a new folder.
        model: arrays, as `Checkpoints.save` gets them.
        meta: "config", "class_names" (None: not known) and "num_classes".

    Raises:
        InputError: it is there already, or cannot be written.
    """
    path = Path(path).expanduser().absolute()
    if path.exists():
        raise InputError(f"{path} is there already; remove it, or give another place")
    items = ocp.args.Composite(model=ocp.args.StandardSave(model), meta=ocp.args.JsonSave(meta))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            checkpointer.save(path, args=items)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); give another place") from error


def read_meta(path: Path) -> dict:
    """Configuration, class names (None: not known) and progress of a checkpoint.

    Raises:
        InputError: it cannot be read.
    """
    return _read(path, meta=ocp.args.JsonRestore())["meta"]


def read_model(path: Path, abstract) -> Any:
    """The "model" item of a checkpoint in the shapes and shardings of `abstract`.

    Raises:
        InputError: it cannot be read, or is another model's.
    """
    return _read(path, model=ocp.args.StandardRestore(abstract))["model"]


def num_classes(meta: dict) -> int:
    """Number of classes, by what `read_meta` gave."""
    return meta["num_classes"] if meta["class_names"] is None else len(meta["class_names"])


def require_head(path: Path, meta: dict) -> None:
    """Pass unless a checkpoint is a backbone by itself, which scores nothing.

    Raises:
        InputError: it is.
    """
    if num_classes(meta) == 0:
        raise InputError(
            f"checkpoint {path} is a backbone without a head, which scores nothing; train one on it: "
            f"--config.init_from={path}"
        )


def model_shapes(path: Path) -> dict:
    """Shapes and types of the "model" item: `jax.ShapeDtypeStruct`s in nested dicts.

    Raises:
        InputError: it cannot be read.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            found = checkpointer.metadata(Path(path) / "model").item_metadata
        except _DAMAGED as error:
            raise _unreadable(path, error) from error
    if found is None:
        raise _unreadable(path, "its model has no index")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found.tree)


def read_part(path: Path, abstract) -> Any:
    """Some arrays of the "model" item.

    Args:
        path: a checkpoint.
        abstract: what to read, nested as in the item: `jax.ShapeDtypeStruct`s; those with a
            sharding come as arrays with it, the others as numpy arrays.

    Raises:
        InputError: it cannot be read, or lacks an array of that shape.
    """

    def how(leaf):
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape)

    part = ocp.args.PyTreeRestore(
        item=abstract, restore_args=jax.tree.map(how, abstract), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            found = checkpointer.restore(Path(path) / "model", args=part)
        except _DAMAGED as error:
            raise _unreadable(path, error) from error
    for (place, wanted), leaf in zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(found)):
        # What is not there comes back from Orbax as it was asked for.
        if isinstance(leaf, jax.ShapeDtypeStruct) or leaf.shape != wanted.shape:
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise InputError(f"checkpoint {path} has no {name} of shape {list(wanted.shape)}")
    return found


def _read(path, **items):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            return checkpointer.restore(path, args=ocp.args.Composite(**items))
        except _DAMAGED as error:
            raise _unreadable(path, error) from error


def _unreadable(path, reason):
    return InputError(f"checkpoint {path} cannot be read: {' '.join(str(reason).split())[:300]}")


def _rank(metrics):
    return metrics["rank"]
