"""PyTorch files of the long-tailed reference, as `torch_weights.long_tailed` takes them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights import files
from cfmlc_jax.torch_weights.long_tailed import BACKBONE, BEST, CLASSIFIER, LATEST, MEAN_FEATURE

_WAY_OUT = "give a file that the reference's training wrote, final_ or latest_model_checkpoint.pth"


def recognise(stored: Any) -> bool:
    """Whether what `torch_weights.files.load` gave is this reference's: state_dicts of a backbone and a classifier."""
    if not isinstance(stored, Mapping):
        return False
    weights = (stored.get(key) for key in (BEST, LATEST))
    return any(isinstance(of, Mapping) and {BACKBONE, CLASSIFIER} <= set(of) for of in weights)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's `BEST` and `LATEST` state_dicts, as far as it has them, and `MEAN_FEATURE`, as numpy arrays.

    Raises:
        InputError: no PyTorch; a file that cannot be read, is damaged, or holds other things.
    """
    path = Path(path)
    return checkpoint_in(path, files.load(path))


def checkpoint_in(path: Path, stored: Any) -> dict[str, Any]:
    """As `read`, of what `torch_weights.files.load` gave of the file.

    Raises:
        InputError: other things than a checkpoint of the reference.
    """
    if not isinstance(stored, Mapping) or not any(
        isinstance(stored.get(key), Mapping) for key in (BEST, LATEST)
    ):
        raise InputError(f"{path} has neither {BEST!r} nor {LATEST!r}; {_WAY_OUT}")
    checkpoint = {
        key: {part: _arrays(path, part, entries) for part, entries in stored[key].items()}
        for key in (BEST, LATEST)
        if isinstance(stored.get(key), Mapping)
    }
    if MEAN_FEATURE in stored:
        checkpoint[MEAN_FEATURE] = _vector(path, stored[MEAN_FEATURE])
    return checkpoint


def _arrays(path, part, entries):
    if not isinstance(entries, Mapping):
        raise InputError(f"{path}: {part!r} is a {type(entries).__name__}, not a state_dict; {_WAY_OUT}")
    return files.arrays(path, entries)


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write what `convert.to_torch` gives as a file that the reference reads; whole or not there.

    Its record of training is empty: "epoch" and "best_epoch" are 0, "best_acc" too.

    Raises:
        InputError: no PyTorch, or a file that cannot be written.
    """
    path = Path(path)
    torch = files.import_torch(f"to write {path}")
    contents: dict[str, Any] = {
        key: {part: files.tensors(torch, entries) for part, entries in checkpoint[key].items()}
        for key in (BEST, LATEST)
    }
    contents |= {"epoch": 0, "best_epoch": 0, "best_acc": 0.0}
    contents[MEAN_FEATURE] = np.asarray(checkpoint[MEAN_FEATURE], np.float32)
    files.save(torch, path, contents)


def _vector(path, stored):
    """The array [d] of little-endian floats that a `torch_file.FromNumpy` describes."""
    try:
        _, shape, dtype, _, data = stored.state
        kind = dtype.arguments[0]
        if kind in ("f4", "f8") and dtype.state[1] == "<" and len(data) == math.prod(shape) * int(kind[1]):
            return np.frombuffer(data, f"<{kind}").reshape(shape).astype(np.float32)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {MEAN_FEATURE!r} is not an array of numbers; {_WAY_OUT}") from error
    raise InputError(f"{path}: {MEAN_FEATURE!r} is not an array of 32 or 64 bit floats; {_WAY_OUT}")
