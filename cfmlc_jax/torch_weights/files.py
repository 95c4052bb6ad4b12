"""Reads weights from PyTorch and safetensors files as numpy arrays, and writes PyTorch files.

Code inside a file is never run.
"""

import argparse
import math
import os
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from cfmlc_jax import files
from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights import strict

# Keys of a file in MLC-PAT's format: the weights, and their moving average.
_WEIGHTS, _AVERAGE = "state_dict", "state_dict_ema"
# Names under which training scripts store weights, and their moving average; the first that exists counts.
_NAMES_OF_WEIGHTS = (
    *("current_model_state", _WEIGHTS, "model", "model_state_dict", "model_state", "net", "network"),
    *("params", "weights", "module"),
)
_NAMES_OF_AVERAGE = (
    *(_AVERAGE, "model_ema", "ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "model_state_ema"),
    *("net_ema", "params_ema", "shadow"),
)
# Lightning's WeightAveraging stores the average as "state_dict", and the weights under this name.
_WEIGHTS_OF_AVERAGING = "current_model_state"
# Greatest depth of nested containers such as {"ema": {"module": {…}}}; no known script nests deeper.
_DEEPEST = 4
# Names under which files store the classes: lists in label order, and mappings from labels or to labels.
_CLASS_NAMES = ("idx_to_class", "class_to_idx", "class_names", "classes", "label_names", "categories")
_CLASS_NAME_CONTAINERS = ("meta", "hyper_parameters")
# Prefixes that parallel training, compilation and similar wrappers add before a module's name, anywhere in a key.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The number of updates of PyTorch's AveragedModel, an entry among the weights that it averages.
_UPDATES = "n_averaged"
_WAY_OUT = "save it again in PyTorch: torch.save(model.state_dict(), FILE)"
_OTHER_FILE = "give a file that the training wrote itself"
# Exceptions that PyTorch raises for a truncated file, or a file that is not PyTorch's.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
_SAFETENSORS = ".safetensors"
# Tensors may need so many times the bytes that are stored (8 bits become 32), and so many more (shared weights).
_MOST_REPEATED, _MOST_ADDED = 4, 2**28
# The safetensors types that numpy and ml_dtypes support, by safetensors' names.
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}


class Weights(NamedTuple):
    """The content of a file of weights.

    weights: arrays by key, half precision as float32.
    average: their moving average, likewise; None if the file has none.
    class_names: the file's class names in label order; None if it has none.
    unread: why the file's class names cannot be used; "" if they can, or if there are none.
    """

    weights: dict[str, np.ndarray]
    average: dict[str, np.ndarray] | None
    class_names: tuple[str, ...] | None = None
    unread: str = ""


def read_torch(path: Path) -> Weights:
    """Weights, average and class names from a PyTorch or safetensors file.

    The file is a state_dict, or contains one under a name that training scripts use ("state_dict",
    "model", …), and possibly a moving average ("state_dict_ema", "model_ema", …). The prefix
    "module." of parallel training and the prefixes of compilation are removed. Everything else in
    the file, such as an optimiser's state, is ignored.

    Raises:
        InputError: PyTorch is missing (safetensors files do not need it); the file cannot be read, is
            damaged, contains objects other than tensors and plain values, or contains no tensors.
    """
    path = Path(path)
    return weights_in(path, load(path))


def weights_in(path: Path, stored: Any) -> Weights:
    """As `read_torch`, from the result of `load`.

    Raises:
        InputError: there are no tensors, or other objects among them.
    """
    if not isinstance(stored, Mapping):
        raise InputError(f"{path} contains a {type(stored).__name__}, not a state_dict; {_WAY_OUT}")
    weights = next((stored[name] for name in _NAMES_OF_WEIGHTS if _state_dict(stored.get(name))), None)
    average = next((stored[name] for name in _NAMES_OF_AVERAGE if _is_average(name, stored.get(name))), None)
    if weights is not None and weights is stored.get(_WEIGHTS_OF_AVERAGING):
        average = stored.get(_WEIGHTS)
    if weights is None:  # the file is a state_dict itself, or has an average only
        weights, average = (stored, None) if average is None or _has_tensors(stored) else (average, average)
    raw = _arrays(path, weights)
    names, unread = _class_names(stored)
    return Weights(raw, None if average is None else _arrays(path, average), names, unread)


def write_torch(
    path: Path, state_dict: Mapping[str, np.ndarray], average: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a file in the format of MLC-PAT's model_best.pth.tar, atomically.

    MLC-PAT's scripts read "state_dict_ema" and print "best_mAP", which is None here, like "epoch".

    Args:
        path: the file to write.
        state_dict: the weights, arrays by PyTorch's keys.
        average: their moving average; None: the weights are used for it.

    Raises:
        InputError: PyTorch is missing, or the file cannot be written.
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
    """The module torch, an optional dependency.

    Raises:
        InputError: it is not installed; the message says why it is needed (`purpose`, such as "to read FILE").
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"PyTorch is needed {purpose}: pip install 'cfmlc_jax[torch]'") from error
    return torch


def tensors(torch: Any, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Arrays converted to tensors, by the same keys."""
    return {key: torch.from_numpy(np.array(array)) for key, array in state_dict.items()}


def save(torch: Any, path: Path, contents: Any) -> None:
    """Write a PyTorch file, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    temporary = files.temporary(path)
    try:
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another path") from error


def load(path: Path) -> Any:
    """The content of a file: of PyTorch's, with numpy's arrays and numbers as `FromNumpy`; of safetensors, arrays by key.

    Raises:
        InputError: PyTorch is missing and needed; the file cannot be read, is damaged, or contains code.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of weights; give the file in it")
    try:
        return _load_safetensors(path) if _is_safetensors(path) else _load_torch(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def _is_safetensors(path):
    """Whether the file begins like safetensors (length and opening brace of a JSON header), or is named so."""
    beginning = b""
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(9)
    if len(beginning) == 9 and beginning[8:] == b"{" and int.from_bytes(beginning[:8], "little") < 2**32:
        return True
    return path.suffix == _SAFETENSORS and not beginning.startswith((b"PK", b"\x80"))


def _load_safetensors(path):
    try:
        return dict(_safetensors(path))
    except (safetensors.SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        size = path.stat().st_size
        raise InputError(
            f"{path} ({size:,} bytes) is truncated, damaged or not a safetensors file ({reason}); "
            "download or save it again"
        ) from error


def _safetensors(path):
    """(key, array) of every tensor; safetensors' own numpy functions do not support bfloat16."""
    for key, entry in safetensors.deserialize(path.read_bytes()):
        if entry["dtype"] not in _TYPES:
            raise InputError(
                f"{path}: {key!r} has the type {entry['dtype']}, which is not supported; save it as float32"
            )
        yield key, np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])


def _load_torch(path):
    torch = import_torch(f"to read {path}")
    # timm's and torchvision's training scripts also save a Namespace, which only contains values.
    allowed = [(FromNumpy, name) for name in FromNumpy.NAMES]
    try:
        with (
            torch.serialization.safe_globals([*allowed, argparse.Namespace]),
            warnings.catch_warnings(),
            path.open("rb") as file,  # torch.load treats a name that ends with .safetensors differently
        ):
            # Warnings about files that are refused afterwards with an explanation.
            warnings.filterwarnings(
                "ignore", ".*(Detected pickle protocol|TorchScript archive|Validating sparse tensor)"
            )
            return torch.load(file, weights_only=True, map_location="cpu")
    except _DAMAGED as error:
        raise InputError(_reason(path, error)) from error


class FromNumpy:
    """The pickled description of a numpy array, number or type, which is recorded but not constructed.

    Without it PyTorch would refuse the file. Allowing numpy's own constructors would run them on the file's bytes.
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


def numpy_floats(path: Path, key: str, stored: Any) -> np.ndarray:
    """The float32 array described by a `FromNumpy` of little-endian floats.

    Raises:
        InputError: the description is of something else.
    """
    try:
        _, shape, dtype, _, data = stored.state
        kind = dtype.arguments[0]
        if kind in ("f4", "f8") and dtype.state[1] == "<" and len(data) == math.prod(shape) * int(kind[1]):
            return np.frombuffer(data, f"<{kind}").reshape(shape).astype(np.float32)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {key!r} is not an array of numbers; {_OTHER_FILE}") from error
    raise InputError(f"{path}: {key!r} is not an array of 32 or 64 bit floats; {_OTHER_FILE}")


def _reason(path, error):
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code:
        return f"{path} contains {code[1]}, which is code and is not run; {_WAY_OUT}"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, not a state_dict; {_WAY_OUT}"
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is truncated, damaged or not a PyTorch file; download or save it again"


def _is_tensor(value):
    """Whether a value is an array or a PyTorch tensor, decided without importing PyTorch."""
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _has_tensors(value):
    """Whether a value is a mapping with tensors, a state_dict."""
    return isinstance(value, Mapping) and any(map(_is_tensor, value.values()))


def _state_dict(value, depth=0):
    """The state_dict in a container or its nested containers; None if there is none."""
    if _has_tensors(value):
        return value
    if not isinstance(value, Mapping) or depth == _DEEPEST:
        return None
    inner = (_state_dict(value.get(name), depth + 1) for name in _NAMES_OF_WEIGHTS)
    return next((state_dict for state_dict in inner if state_dict is not None), None)


def _is_average(name, value):
    """Whether a value can be a moving average; names other than MLC-PAT's may also refer to plain numbers."""
    return value is not None and (name == _AVERAGE or isinstance(value, Mapping))


def _arrays(path, stored):
    """Arrays by key of the state_dict in `stored`, without the prefixes that wrappers of modules add."""
    state_dict = _state_dict(stored)
    if state_dict is None:
        keys = ", ".join(map(repr, list(stored)[:8])) if isinstance(stored, Mapping) else "none"
        raise InputError(f"{path} has no tensors where a state_dict should be (keys: {keys}); {_WAY_OUT}")
    plain_arrays: dict[str, np.ndarray] = {}
    for key, array in arrays(path, state_dict).items():
        if key.rpartition(".")[2] == _UPDATES:
            continue
        plain = _WRAPPERS.sub("", key)
        if plain in plain_arrays:
            raise InputError(
                f"{path}: two entries are {plain!r} without the prefixes of compilation; {_WAY_OUT}"
            )
        plain_arrays[plain] = array
    return strict.without_parallel(plain_arrays)


def arrays(path: Path | str, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors as numpy arrays by the same keys, half precision as float32.

    Args:
        path: how error messages name the tensors, for example the path of their file.
        state_dict: arrays or tensors by key.

    Raises:
        InputError: an entry is not a tensor, or not a dense tensor of real numbers.
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_tensor(value):
            raise InputError(f"{path}: {key!r} is a {type(value).__name__} among tensors; {_WAY_OUT}")
    _require_stored(path, state_dict.values())
    return {key: _array(path, key, tensor) for key, tensor in state_dict.items()}


def _require_stored(path, values) -> None:
    """Raise if tensors repeat what is stored so often that their copies would fill the memory."""
    tensors = [
        value for value in values if not isinstance(value, np.ndarray) and "strided" in str(value.layout)
    ]
    needed = sum(tensor.numel() * max(4, tensor.element_size()) for tensor in tensors)
    storages = {storage.data_ptr(): storage.nbytes() for storage in map(_storage, tensors)}
    stored = sum(storages.values())
    if needed > _MOST_REPEATED * stored + _MOST_ADDED:
        raise InputError(
            f"{path}: its tensors take {needed:,} bytes of the {stored:,} that are stored, because entries are repeated; "
            f"{_WAY_OUT}"
        )


def _storage(tensor):
    return tensor.untyped_storage()


def _array(path: Path | str, key: str, tensor: Any) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        if "strided" not in str(tensor.layout) or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise InputError(f"{path}: {key!r} is not a dense tensor; {_WAY_OUT}")
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # numpy does not support bfloat16
        try:
            tensor = tensor.resolve_conj().resolve_neg().numpy()
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"{path}: {key!r} has the type {tensor.dtype}, which is not supported; {_WAY_OUT}"
            ) from error
    if np.iscomplexobj(tensor):
        raise InputError(f"{path}: {key!r} is a tensor of complex numbers; {_WAY_OUT}")
    # Half precision, and other types that numpy cannot compute with.
    is_small_float = tensor.dtype.itemsize < 4 and tensor.dtype.kind not in "biu"
    return tensor.astype(np.float32) if is_small_float else tensor


def _class_names(stored):
    """(class names or None, why class names cannot be used or "") of a file."""
    places = [
        stored,
        *(stored[name] for name in _CLASS_NAME_CONTAINERS if isinstance(stored.get(name), Mapping)),
    ]
    unread = ""
    for place in places:
        for name in _CLASS_NAMES:
            value = place.get(name)
            if isinstance(value, Mapping | list | tuple) and value:
                names = _names_in_order(value)
                if names is not None:
                    return names, ""
                unread = unread or f"its {name!r} is not one name for each label from 0"
    return None, unread


def _names_in_order(value: Mapping | Sequence) -> tuple[str, ...] | None:
    """Names of the labels 0, 1, …, from a list, a mapping label -> name or name -> label; None for other values."""
    if isinstance(value, Mapping):
        pairs = [(label, name) for label, name in value.items()]
        if all(isinstance(label, str) and isinstance(name, int) for label, name in pairs):
            pairs = [(label, name) for name, label in pairs]
        labels = {str(label): name for label, name in pairs}
        value = [labels.get(str(i)) for i in range(len(pairs))]
    names = tuple(name.strip() if isinstance(name, str) else "" for name in value)
    return names if all(names) and len(set(names)) == len(names) else None
