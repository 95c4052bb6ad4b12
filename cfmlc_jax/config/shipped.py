"""The configurations that come with the package: their names, their files, and what is in them.

A name is that of a file in the folder configs/ without its suffix, and a variant behind a colon: "coco",
"scenes:smoke", "reference/resnet101:voc2007". A checkout has the folder beside the package, a wheel inside it.
"""

import difflib
import os
import runpy
from pathlib import Path

from ml_collections import ConfigDict

from cfmlc_jax import installed
from cfmlc_jax.config import schema
from cfmlc_jax.errors import InputError

FOLDER = "configs"
# What scripts/ablation reads: these files have no get_config().
_STUDIES = "studies"


def folder() -> Path:
    """The folder of the configurations."""
    return installed.folder(FOLDER)


def names() -> list[str]:
    """The names of all configurations, those in sub-folders last."""
    paths = [path.relative_to(folder()).with_suffix("") for path in folder().rglob("*.py")]
    paths = [path for path in paths if path.parts[0] != _STUDIES and not path.name.startswith("_")]
    return [path.as_posix() for path in sorted(paths, key=lambda path: (len(path.parts), path))]


def choices() -> str:
    """What a user may give as a configuration, as the end of a message."""
    return f"give FILE.py with a get_config(), or one of {', '.join(names())}"


def located(text: str) -> str:
    """FILE or FILE:VARIANT, as `--config` takes it, for a file or the name of a configuration.

    A file that exists wins. The name may also be written as a checkout's path, configs/coco.py.

    Raises:
        InputError: there is neither; the nearest names.
    """
    file, colon, variant = text.partition(":")
    if os.path.exists(file) and not os.path.isdir(file):
        return text
    name = file.removeprefix(f"{FOLDER}/").removesuffix(".py")
    if name not in names():
        raise InputError(
            f"--config cannot be read: {schema.shown(file)} is neither a file nor a configuration of this package; "
            f"{_nearest(name)}"
        )
    return f"{_file(name)}{colon}{variant}"


def get_config(name: str) -> ConfigDict:
    """The configuration of a name, such as "coco" or "scenes:smoke", unlocked: a start for one's own.

    Raises:
        InputError: an unknown name; the nearest ones.
    """
    stem, colon, variant = name.partition(":")
    if stem not in names():
        raise InputError(f"{schema.shown(stem)} is not a configuration of this package; {_nearest(stem)}")
    return runpy.run_path(str(_file(stem)))["get_config"](*([variant] if colon else []))


def _file(name):
    return folder() / f"{name}.py"


def _nearest(name):
    """The most similar names, or all."""
    known = {known.rpartition("/")[2]: known for known in names()} | {known: known for known in names()}
    matches = [name] if name in known else difflib.get_close_matches(name, list(known), 3)
    near = dict.fromkeys(known[match] for match in matches)
    return f"did you mean {' or '.join(near)}?" if near else choices()
