"""PyTorch files to state_dicts of numpy arrays and back. Code inside a file is never run."""

import os
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.errors import InputError

# Of a file in MLC-PAT's form; the latter is the moving average of the former.
_WEIGHTS, _AVERAGE = "state_dict", "state_dict_ema"
_OTHER_WEIGHTS = "model"
_PARALLEL = "module."
_WAY_OUT = "save it anew in PyTorch: torch.save(model.state_dict(), FILE)"
# What PyTorch raises on a file that is cut, or is no file of PyTorch's at all.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)


def read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """(weights, their moving average or None) of a file: arrays by key, half precision as float32.

    The file is a state_dict, or holds one as "state_dict" or "model"; the average is MLC-PAT's
    "state_dict_ema". The prefix "module." of parallel training is taken off. All else in the file,
    such as an optimiser's state, is left there.

    Raises:
        InputError: no PyTorch; a file that cannot be read, is damaged, holds objects other than
            tensors and plain values, or no tensors.
    """
    path = Path(path)
    torch = import_torch(f"to read {path}")
    stored = load(torch, path)
    if not isinstance(stored, Mapping):
        raise InputError(f"{path} holds a {type(stored).__name__}, not a state_dict; {_WAY_OUT}")
    for key in (_WEIGHTS, _OTHER_WEIGHTS):
        if isinstance(stored.get(key), Mapping):
            weights, average = stored[key], stored.get(_AVERAGE)
            break
    else:
        weights, average = stored, None
    return _arrays(torch, path, weights), None if average is None else _arrays(torch, path, average)


def write_torch(
    path: Path, state_dict: Mapping[str, np.ndarray], average: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a file in the form of MLC-PAT's model_best.pth.tar; whole or not there.

    Its scripts read "state_dict_ema" and print "best_mAP", which is None here, as "epoch" is.

    Args:
        path: of the file.
        state_dict: the weights, arrays by PyTorch's keys.
        average: their moving average; None: the weights stand in for it.

    Raises:
        InputError: no PyTorch, or a file that cannot be written.
    """
    path = Path(path)
    torch = import_torch(f"to write {path}")

    contents = {
        "epoch": None,
        _WEIGHTS: tensors(torch, state_dict),
        _AVERAGE: tensors(torch, state_dict if average is None else average),
        "best_mAP": None,
    }
    save(torch, path, contents)


def import_torch(purpose: str) -> Any:
    """PyTorch, which is an optional extra.

    Raises:
        InputError: it is not installed; `purpose`, "to read FILE", says what needs it.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"PyTorch is needed {purpose}: pip install 'cfmlc_jax[torch]'") from error
    return torch


def tensors(torch: Any, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Tensors of arrays, by the same keys."""
    return {key: torch.from_numpy(np.array(array)) for key, array in state_dict.items()}


def save(torch: Any, path: Path, contents: Mapping[str, Any]) -> None:
    """Write a file of PyTorch's; whole or not there.

    Raises:
        InputError: a file that cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another place") from error


def load(torch: Any, path: Path) -> Any:
    """What a file of PyTorch's holds; arrays and numbers of numpy's as `FromNumpy`.

    Raises:
        InputError: a file that cannot be read, is damaged, or holds code.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of PyTorch")
    try:
        allowed = [(FromNumpy, name) for name in FromNumpy.NAMES]
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            # Said of files that are then refused, in one line that says why.
            warnings.filterwarnings("ignore", ".*(Detected pickle protocol|TorchScript archive)")
            return torch.load(path, weights_only=True, map_location="cpu")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except _DAMAGED as error:
        raise InputError(_reason(path, error)) from error


class FromNumpy:
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


def _reason(path, error):
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        return f"{path} holds {found[1]}, which is code and is not run; {_WAY_OUT}"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, not a state_dict; {_WAY_OUT}"
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is cut short, damaged or not of PyTorch; download or save it again"


def _arrays(torch, path, state_dict):
    """Arrays by key, without "module." if every key has it."""
    if not isinstance(state_dict, Mapping) or not any(map(torch.is_tensor, state_dict.values())):
        keys = ", ".join(map(repr, list(state_dict)[:8])) if isinstance(state_dict, Mapping) else "none"
        raise InputError(f"{path} has no tensors where a state_dict should be (keys: {keys}); {_WAY_OUT}")
    found = arrays(torch, path, state_dict)
    while all(key.startswith(_PARALLEL) for key in found):
        found = {key.removeprefix(_PARALLEL): array for key, array in found.items()}
    return found


def arrays(torch: Any, path: Path, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by the file's own keys, half precision as float32.

    Raises:
        InputError: something among the tensors that is none, or no dense one.
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not torch.is_tensor(value):
            raise InputError(f"{path}: {key!r} is a {type(value).__name__} among tensors; {_WAY_OUT}")
    return {key: _array(path, key, tensor) for key, tensor in state_dict.items()}


def _array(path: Path, key: str, tensor: Any) -> np.ndarray:
    if tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        raise InputError(f"{path}: {key} is not a dense tensor; {_WAY_OUT}")
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # numpy knows no bfloat16
    return tensor.numpy()
