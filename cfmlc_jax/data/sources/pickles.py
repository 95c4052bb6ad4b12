"""Pickles of arrays and plain values, read without running code.

numpy's own constructors are not called: they and the states that pickles give them can make an array whose bytes are
taken for pointers. Arrays are made of their bytes here, and only of plain numbers.
"""

import math
import pickle
from typing import IO, Any

import numpy as np

# Kinds of numbers that an array may have, as numpy names them: bool, whole numbers, floats.
_KINDS = "biuf"


def load(file: IO[bytes], encoding: str) -> Any:
    """The object of a pickle that has only arrays of numbers and plain values; its arrays are `Array`.

    Args:
        file: the pickle, from its first byte.
        encoding: of the text in pickles of Python 2, or "bytes".

    Raises:
        pickle.UnpicklingError: it names anything else, which is not looked up, or has an array of something else.
    """
    return _Unpickler(file, encoding=encoding).load()


class Array:
    """An array in a pickle: `np.asarray` makes it one; `item` is the only entry of an array of one object."""

    def __init__(self, *arguments: Any):
        self._values: np.ndarray | list | None = None

    def __setstate__(self, state: Any) -> None:
        try:
            _, shape, kind, fortran, data = state
            self._values = data if kind.is_object else kind.array(shape, bool(fortran), data)
        except (AttributeError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"an array cannot be read ({error})") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not isinstance(self._values, np.ndarray):
            raise pickle.UnpicklingError("an array of objects is not an array of numbers")
        return np.array(self._values, dtype)

    def item(self) -> Any:
        """The only entry of an array of one object.

        Raises:
            pickle.UnpicklingError: it has another number of entries, or numbers.
        """
        if not isinstance(self._values, list) or len(self._values) != 1:
            raise pickle.UnpicklingError("not an array of one object")
        return self._values[0]


class _Kind:
    """The pickled description of an array's type: such as "u1", and whether its bytes are in little-endian order."""

    def __init__(self, name: Any, *arguments: Any):
        self._name, self._order = _text(name), "<"

    def __setstate__(self, state: Any) -> None:
        self._order = _text(state[1])

    @property
    def is_object(self) -> bool:
        return self._name in ("O", "O8")

    def array(self, shape: Any, fortran: bool, data: Any) -> np.ndarray:
        """The array of these bytes."""
        order = ">" if self._order == ">" else "<"
        dtype = np.dtype(self._name).newbyteorder(order)
        if dtype.kind not in _KINDS or dtype.fields or dtype.subdtype:
            raise ValueError(f"type {self._name}")
        if isinstance(data, str):  # the text of Python 2, decoded as latin1
            data = data.encode("latin1")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError("its bytes do not suit its shape")
        return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _text(value):
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise pickle.UnpicklingError("an array's type is not text")
    return text


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("numpy", "dtype"):
            return _Kind
        if (module, name) == ("numpy", "ndarray"):
            return Array
        if name == "_reconstruct" and module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            return Array
        raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor a plain value")
