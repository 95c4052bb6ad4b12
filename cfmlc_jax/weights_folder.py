"""A folder of model.safetensors and config.json: a classifier without its training, as a hub stores it.

`python -m cfmlc_jax.export RUN FOLDER` writes it; `checkpoint.find` and its readers take it like a checkpoint. It has one
set of weights, those that predict, which are read as both the raw and the averaged ones.

- model.safetensors: arrays by names such as "params.backbone.conv1.kernel", and "mean_colour".
- config.json: the meta of the checkpoint ("config", "class_names", …), and the document of `export.about`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from cfmlc_jax import files
from cfmlc_jax.errors import InputError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# The sets of weights of a checkpoint, both read from the one in the file.
_READ_AS = ("variables", "average")
# Types by safetensors' names.
_TYPES = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I32": np.int32, "I64": np.int64}


def is_one(path: Path) -> bool:
    """Whether a path is such a folder."""
    return (path / WEIGHTS).is_file()


def read_meta(path: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = path / CONFIG
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read ({reason}); export or download the folder again") from error
    if not isinstance(meta, dict) or not {"config", "class_names"} <= meta.keys():
        raise InputError(
            f"{file} is not of a classifier of cfmlc_jax, which has the fields config and class_names; give a folder "
            "written by python -m cfmlc_jax.export"
        )
    return meta


def shapes(path: Path) -> dict[str, Any]:
    """Shapes and types of the arrays: `jax.ShapeDtypeStruct`s nested as in a checkpoint's "model" item.

    Raises:
        InputError: the file cannot be read.
    """
    tree: dict[str, Any] = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            array = file.get_slice(name)
            dtype = _TYPES.get(array.get_dtype())
            if dtype is None:
                raise InputError(f"{path / WEIGHTS}: {name} has the type {array.get_dtype()}; store float32")
            leaf = jax.ShapeDtypeStruct(tuple(array.get_shape()), dtype)
            keys = tuple(name.split("."))
            for place in [(each, *keys) for each in _READ_AS] if len(keys) > 1 else [keys]:
                _put(tree, place, leaf)
    return tree


def read_part(path: Path, abstract: Any) -> Any:
    """Some arrays, nested as in `abstract`: `jax.ShapeDtypeStruct`s; those with a sharding become JAX arrays with it.

    Raises:
        InputError: the file cannot be read, or lacks an array of that shape.
    """
    with _opened(path) as file:
        names = set(file.keys())

        def read(place, wanted):
            name = _name(place)
            array = file.get_tensor(name) if name in names else None
            if array is None or array.shape != wanted.shape:
                raise InputError(f"{path / WEIGHTS} has no {name} of shape {list(wanted.shape)}")
            array = array.astype(wanted.dtype)
            if wanted.sharding is None:
                return array
            return jax.make_array_from_callback(wanted.shape, wanted.sharding, lambda index: array[index])

        return jax.tree_util.tree_map_with_path(read, abstract)


def write(path: Path, *, model: Mapping[str, Any], meta: Mapping[str, Any], card: str) -> None:
    """Write the files into an existing folder.

    Args:
        path: of the folder.
        model: {"average", "mean_colour"}: the weights to store, nested dicts of arrays.
        meta: JSON values of config.json.
        card: text of the model card.

    Raises:
        WriteError: a file cannot be written.
    """
    leaves = jax.tree.leaves_with_path(dict(model))
    arrays = {_name(place): np.asarray(leaf) for place, leaf in leaves}
    files.write_bytes(path / WEIGHTS, safetensors.numpy.save(arrays, {"format": "flax"}))
    files.write_text(path / CONFIG, json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    files.write_text(path / CARD, card)


@contextlib.contextmanager
def _opened(path) -> Iterator[Any]:
    """The file of arrays, open; what reading it raises becomes an error of one line."""
    try:
        with safetensors.safe_open(path / WEIGHTS, "numpy") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path / WEIGHTS} cannot be read ({reason}); export or download the folder again"
        ) from error


def _name(place):
    """The name in the file of an array of a checkpoint's "model" item."""
    keys = [key.key for key in place]
    assert not any("." in key for key in keys), keys
    return ".".join(keys[1:] if keys[0] in _READ_AS else keys)


def _put(tree, place, leaf):
    for key in place[:-1]:
        tree = tree.setdefault(key, {})
    tree[place[-1]] = leaf
