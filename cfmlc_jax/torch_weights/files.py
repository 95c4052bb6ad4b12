"""Files of weights, PyTorch's and safetensors', to state_dicts of numpy arrays and back. Code inside a file is never run."""

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

from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights import strict

# Of a file in MLC-PAT's form; the latter is the moving average of the former.
_WEIGHTS, _AVERAGE = "state_dict", "state_dict_ema"
# Under what names training scripts keep weights, and their moving average; the first that is there counts.
_NAMES_OF_WEIGHTS = (
    *("current_model_state", _WEIGHTS, "model", "model_state_dict", "model_state", "net", "network"),
    *("params", "weights", "module"),
)
_NAMES_OF_AVERAGE = (
    *(_AVERAGE, "model_ema", "ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "model_state_ema"),
    *("net_ema", "params_ema", "shadow"),
)
# Lightning's WeightAveraging keeps the average as "state_dict", and the weights under this name.
_BESIDE_AVERAGE = "current_model_state"
# Containers of containers: {"ema": {"module": {…}}}. Deeper ones are of no known script.
_DEEPEST = 4
# Under what names files hold the classes: lists in label order, and mappings from labels or to them.
_CLASS_NAMES = ("idx_to_class", "class_to_idx", "class_names", "classes", "label_names", "categories")
_BESIDE_CLASS_NAMES = ("meta", "hyper_parameters")
# What parallel training, compilation and its kin put before a module's own name, wherever that is.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Number of updates of PyTorch's AveragedModel, which stands among the weights it averages.
_UPDATES = "n_averaged"
_WAY_OUT = "save it anew in PyTorch: torch.save(model.state_dict(), FILE)"
_OTHER_FILE = "give a file that the training wrote itself"
# What PyTorch raises on a file that is cut, or is no file of PyTorch's at all.
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
# The types of safetensors that numpy and ml_dtypes have, as safetensors names them.
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8},
}


class Weights(NamedTuple):
    """What is read of a file of weights.

    weights: arrays by key, half precision as float32.
    average: their moving average, likewise; None where the file has none.
    class_names: that the file gives its classes, in label order; None where it gives none.
    unread: what stands where class names should be and is none, in words; "" if nothing does.
    """

    weights: dict[str, np.ndarray]
    average: dict[str, np.ndarray] | None
    class_names: tuple[str, ...] | None = None
    unread: str = ""


def read_torch(path: Path) -> Weights:
    """Weights, average and class names of a file of PyTorch or safetensors.

    The file is a state_dict, or holds one under a name that training scripts use ("state_dict",
    "model", …), and the moving average beside it ("state_dict_ema", "model_ema", …). The prefix
    "module." of parallel training and what compilation adds to names are taken off. All else in
    the file, such as an optimiser's state, is left there.

    Raises:
        InputError: no PyTorch, which files of safetensors do not need; a file that cannot be read, is
            damaged, holds objects other than tensors and plain values, or no tensors.
    """
    path = Path(path)
    return weights_in(path, load(path))


def weights_in(path: Path, stored: Any) -> Weights:
    """As `read_torch`, of what `load` gave of the file.

    Raises:
        InputError: no tensors, or other things among them.
    """
    if not isinstance(stored, Mapping):
        raise InputError(f"{path} holds a {type(stored).__name__}, not a state_dict; {_WAY_OUT}")
    weights = next((stored[name] for name in _NAMES_OF_WEIGHTS if _state_dict(stored.get(name))), None)
    average = next((stored[name] for name in _NAMES_OF_AVERAGE if _is_average(name, stored.get(name))), None)
    if weights is not None and weights is stored.get(_BESIDE_AVERAGE):
        average = stored.get(_WEIGHTS)
    if weights is None:  # a state_dict by itself, or an average alone
        weights, average = (stored, None) if average is None or _tensors(stored) else (average, average)
    arrays_of = _arrays(path, weights)
    names, unread = _class_names(stored)
    return Weights(arrays_of, None if average is None else _arrays(path, average), names, unread)


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


def load(path: Path) -> Any:
    """What a file holds: of PyTorch's, with arrays and numbers of numpy's as `FromNumpy`; of safetensors, arrays by key.

    Raises:
        InputError: no PyTorch for a file of its own; a file that cannot be read, is damaged, or holds code.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of weights; name the file in it")
    try:
        return _load_safetensors(path) if _is_safetensors(path) else _load_torch(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def _is_safetensors(path):
    """By its content: the length of a header in JSON, and its brace. By its name, if it is nothing of PyTorch's."""
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
            f"{path} ({size:,} bytes) is cut short, damaged or not of safetensors ({reason}); download or save it again"
        ) from error


def _safetensors(path):
    """(key, array) of every tensor. The package's own numpy side knows no bfloat16."""
    for key, entry in safetensors.deserialize(path.read_bytes()):
        if entry["dtype"] not in _TYPES:
            raise InputError(
                f"{path}: {key!r} has the type {entry['dtype']}, which is not read; save it as float32"
            )
        yield key, np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])


def _load_torch(path):
    torch = import_torch(f"to read {path}")
    # A Namespace, which timm's and torchvision's training scripts save beside the weights, only holds values.
    allowed = [(FromNumpy, name) for name in FromNumpy.NAMES]
    try:
        with (
            torch.serialization.safe_globals([*allowed, argparse.Namespace]),
            warnings.catch_warnings(),
            path.open("rb") as file,  # a name that ends with .safetensors is read otherwise
        ):
            # Said of files that are then refused, in one line that says why.
            warnings.filterwarnings(
                "ignore", ".*(Detected pickle protocol|TorchScript archive|Validating sparse tensor)"
            )
            return torch.load(file, weights_only=True, map_location="cpu")
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


def numpy_floats(path: Path, key: str, stored: Any) -> np.ndarray:
    """The float32 array of the little-endian floats that a `FromNumpy` describes.

    Raises:
        InputError: something else.
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
        return f"{path} holds {code[1]}, which is code and is not run; {_WAY_OUT}"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, not a state_dict; {_WAY_OUT}"
    size = path.stat().st_size
    return f"{path} ({size:,} bytes) is cut short, damaged or not of PyTorch; download or save it again"


def _is_tensor(value):
    """Whether a value is an array, or a tensor of PyTorch, which may not be there to ask."""
    return isinstance(value, np.ndarray) or hasattr(value, "detach")


def _tensors(value):
    """Whether a value is a state_dict itself."""
    return isinstance(value, Mapping) and any(map(_is_tensor, value.values()))


def _state_dict(value, depth=0):
    """The state_dict in a container, or in a container in it; None without one."""
    if _tensors(value):
        return value
    if not isinstance(value, Mapping) or depth == _DEEPEST:
        return None
    inner = (_state_dict(value.get(name), depth + 1) for name in _NAMES_OF_WEIGHTS)
    return next((found for found in inner if found is not None), None)


def _is_average(name, value):
    """Whether a value is meant for a moving average: by other names than MLC-PAT's there may be numbers."""
    return value is not None and (name == _AVERAGE or isinstance(value, Mapping))


def _arrays(path, stored):
    """Arrays by key of the state_dict in `stored`, without what wrappers of modules add to the keys."""
    state_dict = _state_dict(stored)
    if state_dict is None:
        keys = ", ".join(map(repr, list(stored)[:8])) if isinstance(stored, Mapping) else "none"
        raise InputError(f"{path} has no tensors where a state_dict should be (keys: {keys}); {_WAY_OUT}")
    found: dict[str, np.ndarray] = {}
    for key, array in arrays(path, state_dict).items():
        if key.rpartition(".")[2] == _UPDATES:
            continue
        plain = _WRAPPERS.sub("", key)
        if plain in found:
            raise InputError(f"{path}: two entries are {plain!r} without what compilation adds; {_WAY_OUT}")
        found[plain] = array
    return strict.without_parallel(found)


def arrays(path: Path | str, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by the same keys, half precision as float32.

    Args:
        path: what an error names, of the file say.
        state_dict: arrays or tensors by key.

    Raises:
        InputError: something among the tensors that is none, or no dense one of real numbers.
    """
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_tensor(value):
            raise InputError(f"{path}: {key!r} is a {type(value).__name__} among tensors; {_WAY_OUT}")
    return {key: _array(path, key, tensor) for key, tensor in state_dict.items()}


def _array(path: Path | str, key: str, tensor: Any) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        if "strided" not in str(tensor.layout) or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise InputError(f"{path}: {key!r} is not a dense tensor; {_WAY_OUT}")
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # numpy knows no bfloat16
        try:
            tensor = tensor.resolve_conj().resolve_neg().numpy()
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"{path}: {key!r} has the type {tensor.dtype}, which is not read; {_WAY_OUT}"
            ) from error
    if np.iscomplexobj(tensor):
        raise InputError(f"{path}: {key!r} is a tensor of complex numbers; {_WAY_OUT}")
    # Half precision, and what else numpy does not compute with.
    is_small_float = tensor.dtype.itemsize < 4 and tensor.dtype.kind not in "biu"
    return tensor.astype(np.float32) if is_small_float else tensor


def _class_names(stored):
    """(class names or None, "" or what stands in their place) of a file."""
    places = [
        stored,
        *(stored[name] for name in _BESIDE_CLASS_NAMES if isinstance(stored.get(name), Mapping)),
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
    """Names of the labels 0, 1, …: of a list, of label -> name or of name -> label; None of other things."""
    if isinstance(value, Mapping):
        pairs = [(label, name) for label, name in value.items()]
        if all(isinstance(label, str) and isinstance(name, int) for label, name in pairs):
            pairs = [(label, name) for name, label in pairs]
        labels = {str(label): name for label, name in pairs}
        value = [labels.get(str(i)) for i in range(len(pairs))]
    names = tuple(name.strip() if isinstance(name, str) else "" for name in value)
    return names if all(names) and len(set(names)) == len(names) else None
