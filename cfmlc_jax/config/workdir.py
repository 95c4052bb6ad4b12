"""The configuration of a workdir, config.json: a workdir belongs to one configuration."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.errors import BucketError, InputError


def claim(workdir: Path, fields: dict) -> None:
    """Write config.json, unless the workdir has checkpoints of another configuration.

    Args:
        workdir: of a run.
        fields: the configuration (`config.to_json`).

    Raises:
        InputError: the checkpoints are of another configuration.
    """
    stored = stored_fields(workdir) if has_checkpoints(workdir) else None
    if stored is not None:
        advice = "take another --workdir, or remove that one"
        _require_same(stored, fields, f"workdir {workdir} is a run", advice)
    if jax.process_index() == 0:
        files.write_text(workdir / "config.json", json.dumps(fields, indent=2) + "\n")


def require_own(checkpoint: Path, meta: dict[str, Any], fields: dict) -> None:
    """Raise unless a checkpoint is of the workdir's configuration: config.json may have been removed, or a folder copied.

    Args:
        checkpoint: its path.
        meta: its meta.
        fields: as of `claim`.

    Raises:
        InputError: the checkpoint is of another configuration.
    """
    advice = "move it to the workdir of its own run, or take another --workdir"
    _require_same(meta["config"], fields, f"checkpoint {checkpoint} is", advice)


def has_checkpoints(workdir: Path) -> bool:
    """Whether the run has complete checkpoints, including damaged ones that were set aside."""
    return bool(checkpoints.complete_steps(workdir / "checkpoints")) or any(
        (workdir / "damaged").glob("[0-9]*")
    )


def stored_fields(workdir: Path) -> dict[str, Any] | None:
    """The configuration of a run with checkpoints: from config.json, or from a checkpoint if that was removed.

    None: there is no config.json, and no checkpoint can be read.

    Raises:
        InputError: config.json is damaged.
    """
    path = workdir / "config.json"
    if path.exists():
        return _fields(path)
    folder = workdir / "checkpoints"
    for step in checkpoints.complete_steps(folder):
        with contextlib.suppress(InputError):
            return checkpoints.read_meta(folder / str(step))["config"]
    return None


def _require_same(stored, fields, what, advice):
    differences = configs.differences(configs.completed(stored), fields)
    if differences:
        raise InputError(f"{what} of another configuration ({'; '.join(differences)}); {advice}")


def _fields(path):
    """The fields of a run's config.json."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except BucketError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it, or take another --workdir") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} is damaged (no fields in it); restore it, or take another --workdir")
    return fields
