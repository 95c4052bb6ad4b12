"""Pickles of arrays and plain values, read without running code."""

import pickle
from typing import IO, Any

import numpy as np


def load(file: IO[bytes], encoding: str) -> Any:
    """The object of a pickle that has only arrays and plain values.

    Args:
        file: the pickle, from its first byte.
        encoding: of the text in pickles of Python 2, or "bytes".

    Raises:
        pickle.UnpicklingError: it names anything else, which is not looked up.
    """
    return _Unpickler(file, encoding=encoding).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if name == "_reconstruct" and module in {"numpy.core.multiarray", "numpy._core.multiarray"}:
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor a plain value")
