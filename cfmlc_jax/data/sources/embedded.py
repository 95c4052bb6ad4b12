"""The files of the folder `data/assets`, which the package contains."""

from importlib import resources
from typing import IO

import numpy as np


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of an embedded .npz file by name, in the file's order."""
    with open_asset(name) as file, np.load(file) as stored:
        return {key: stored[key] for key in stored}


def open_asset(name: str) -> IO[bytes]:
    """An embedded file, opened to be read as bytes."""
    return (resources.files("cfmlc_jax.data") / "assets" / name).open("rb")
