"""The files of the folder `data/assets`, which the package contains."""

import threading
from importlib import resources
from typing import IO

import numpy as np

# NumPy parses headers by `ast`, which in Python 3.11 fails at times if several threads do (CPython issue 106905).
_PARSING = threading.Lock()


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of an embedded .npz file by name, in the file's order."""
    with _PARSING, open_asset(name) as file, np.load(file) as stored:
        return {key: stored[key] for key in stored}


def open_asset(name: str) -> IO[bytes]:
    """An embedded file, opened to be read as bytes."""
    return (resources.files("cfmlc_jax.data") / "assets" / name).open("rb")
