"""The files of the folder `data/assets`, which the package contains."""

from importlib import resources
from typing import BinaryIO, cast

import numpy as np

from cfmlc_jax import files


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of an embedded .npz file by name, in the file's order."""
    with open_asset(name) as file:
        return files.read_npz(file)


def open_asset(name: str) -> BinaryIO:
    """An embedded file, opened to be read as bytes."""
    return cast(BinaryIO, (resources.files("cfmlc_jax.data") / "assets" / name).open("rb"))
