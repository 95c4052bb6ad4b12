"""A classifier as one StableHLO file: written by `write`, read back by `read`.

The file is a ZIP archive of three entries: "program", what `jax.export` serialises; "weights.npz", its first argument;
and "about.json", the document of `export.about`. JAX and the package flatbuffers are enough to read it:

    with zipfile.ZipFile("OUT.stablehlo") as archive:
        program = jax.export.deserialize(bytearray(archive.read("program")))
        weights = dict(np.load(archive.open("weights.npz")))
        about = json.loads(archive.read("about.json"))
    outputs = program.call(weights, images)

Weights are an argument, and not constants of the program, because XLA takes minutes to compile large constants.
"""

import functools
import importlib.util
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import jax.export
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import files
from cfmlc_jax.errors import InputError

PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM, _WEIGHTS, _ABOUT = "program", "weights.npz", "about.json"
_DAMAGED = (OSError, KeyError, ValueError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Program:
    """A classifier from a StableHLO file: images uint8 [b, s, s, 3] -> arrays of probabilities by name.

    about: the file's document: class names, preprocessing, thresholds, what the outputs are.
    """

    about: dict[str, Any]
    _call: Callable

    def __call__(self, images: Any) -> dict[str, np.ndarray]:
        """The outputs by name, "whole", "combined" [b, k] and others; on JAX's default device."""
        return {name: np.asarray(array) for name, array in self._call(images).items()}


def require_packages() -> None:
    """Raise unless the package is installed that `jax.export` serialises with.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError("a .stablehlo file needs the package flatbuffers: pip install 'cfmlc_jax[export]'")


def write(
    path: Path, function: Callable, weights: Mapping[str, Any], size: int, about: dict[str, Any]
) -> None:
    """Write a function of weights and images uint8 [b, size, size, 3], b free, for all of `PLATFORMS`.

    Args:
        path: of the file.
        function: weights and images -> arrays by name.
        weights: nested dicts of arrays.
        size: side of the images, pixels.
        about: the document.

    Raises:
        OSError: the file cannot be written.
    """
    (b,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, size, size, 3), np.uint8)
    arrays: dict[str, Any] = {
        ".".join(place): np.asarray(array) for place, array in flatten_dict(weights).items()
    }
    flat = jax.jit(lambda arrays, images: function(_nested(arrays), images))
    exported = jax.export.export(flat, platforms=PLATFORMS)(arrays, images)
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(_ABOUT, json.dumps(about, indent=1) + "\n")
            archive.writestr(_PROGRAM, exported.serialize())
            with archive.open(_WEIGHTS, "w", force_zip64=True) as entry:
                np.savez(entry, **arrays)
        file.flush()
        os.fsync(file.fileno())


def read(path: str | os.PathLike) -> Program:
    """The classifier of a StableHLO file. It is compiled for each batch size at the first call with it.

    Raises:
        InputError: the package flatbuffers is missing; the file cannot be read, or is no such file.
    """
    require_packages()
    try:
        with open(path, "rb") as file, files.opened_zip(file) as archive:
            about = json.loads(archive.read(_ABOUT))
            exported = jax.export.deserialize(bytearray(archive.read(_PROGRAM)))
            with archive.open(_WEIGHTS) as entry:
                weights = jax.device_put(files.read_npz(cast(BinaryIO, entry)))
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{os.fspath(path)} is not a whole file of python -m cfmlc_jax.export ({reason}); export it again"
        ) from error
    return Program(about, functools.partial(jax.jit(exported.call), weights))


def _nested(arrays):
    return unflatten_dict({tuple(name.split(".")): array for name, array in arrays.items()})
