"""PyTorch files of the long-tailed reference, as `longtail.convert` takes them. Code inside a file is never run."""

import math
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.longtail.convert import BACKBONE, BEST, CLASSIFIER, LATEST, MEAN_FEATURE

_WAY_OUT = "give a file that the reference's training wrote, final_ or latest_model_checkpoint.pth"
# What PyTorch raises on a file that is cut, or is no file of PyTorch's at all.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def recognise(path: Path) -> bool:
    """Whether a file is one of this reference's: state_dicts of a backbone and a classifier.

    Raises:
        InputError: no PyTorch; a file that cannot be read, or is damaged.
    """
    path = Path(path)
    stored = _load(_import_torch(f"to read {path}"), path)
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
    torch = _import_torch(f"to read {path}")
    stored = _load(torch, path)
    if not isinstance(stored, Mapping) or not any(
        isinstance(stored.get(key), Mapping) for key in (BEST, LATEST)
    ):
        raise InputError(f"{path} has neither {BEST!r} nor {LATEST!r}; {_WAY_OUT}")
    checkpoint = {
        key: {part: _arrays(torch, path, entries) for part, entries in stored[key].items()}
        for key in (BEST, LATEST)
        if isinstance(stored.get(key), Mapping)
    }
    if MEAN_FEATURE in stored:
        checkpoint[MEAN_FEATURE] = _vector(path, stored[MEAN_FEATURE])
    return checkpoint


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write what `convert.to_torch` gives as a file that the reference reads; whole or not there.

    Its record of training is empty: "epoch" and "best_epoch" are 0, "best_acc" too.

    Raises:
        InputError: no PyTorch, or a file that cannot be written.
    """
    path = Path(path)
    torch = _import_torch(f"to write {path}")
    contents: dict[str, Any] = {
        key: {
            part: {name: torch.from_numpy(np.array(array)) for name, array in entries.items()}
            for part, entries in checkpoint[key].items()
        }
        for key in (BEST, LATEST)
    }
    contents |= {"epoch": 0, "best_epoch": 0, "best_acc": 0.0}
    contents[MEAN_FEATURE] = np.asarray(checkpoint[MEAN_FEATURE], np.float32)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another place") from error


def _import_torch(purpose):
    try:
        import torch
    except ImportError as error:
        raise InputError(f"PyTorch is needed {purpose}: pip install 'cfmlc_jax[torch]'") from error
    return torch


class _Stored:
    """An array, number or type of numpy's as its pickle describes it: what it is made of, not made.

    PyTorch would refuse the file; allowing numpy's own constructors would run them on its bytes.
    """

    NAMES = (
        *("numpy.dtype", "numpy.ndarray", "numpy.dtypes.Float32DType", "numpy.dtypes.Float64DType"),
        *(  # as numpy 2 and numpy 1 wrote them
            f"{module}.multiarray.{function}"
            for module in ("numpy._core", "numpy.core")
            for function in ("_reconstruct", "scalar")
        ),
    )

    def __init__(self, *arguments):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state):
        self.state = state


def _load(torch, path):
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of PyTorch; {_WAY_OUT}")
    try:
        with torch.serialization.safe_globals([(_Stored, name) for name in _Stored.NAMES]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {_WAY_OUT}") from error
    except _DAMAGED as error:
        raise InputError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short, damaged, or holds code, which is not run; {_WAY_OUT}"
        ) from error


def _arrays(torch, path, entries):
    for key, value in entries.items():
        if not torch.is_tensor(value):
            raise InputError(f"{path}: {key!r} is of type {type(value).__name__} among tensors; {_WAY_OUT}")
    return {key: tensor.detach().numpy() for key, tensor in entries.items()}


def _vector(path, stored):
    """The array [d] of little-endian floats that a pickle describes."""
    try:
        _, shape, dtype, _, data = stored.state
        kind = dtype.arguments[0]
        if kind in ("f4", "f8") and dtype.state[1] == "<" and len(data) == math.prod(shape) * int(kind[1]):
            return np.frombuffer(data, f"<{kind}").reshape(shape).astype(np.float32)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {MEAN_FEATURE!r} is not an array of numbers; {_WAY_OUT}") from error
    raise InputError(f"{path}: {MEAN_FEATURE!r} is not an array of 32 or 64 bit floats; {_WAY_OUT}")
