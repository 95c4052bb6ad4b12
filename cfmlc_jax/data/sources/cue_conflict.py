"""Cue-conflict images of Geirhos et al. (ICLR 2019): photos with the shape of one category and the texture of another."""

import re
from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import files, imbalance
from cfmlc_jax.data.views import formats
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.imagenet_groups import CATEGORIES

FOLDER = "style-transfer-preprocessed-512"
WAY_OUT = f"give stimuli/{FOLDER} of https://github.com/rgeirhos/texture-vs-shape"
_NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")


class CueConflict(files.FileSource):
    """A single-label source of the images whose shape and texture differ; labels [n, 16] are the shape's.

    In the official layout: 16 folders named by the category of the shape, with files like cat1-dog3.png, of the
    shape of a cat with the texture of a dog. Of the official 1,280 images, 1,200 have different ones.

    mechanisms: int32 [n, 2], the categories of shape and texture.

    Args:
        root: the folder of the 16, or one that has it as `FOLDER` or stimuli/`FOLDER`.

    Raises:
        InputError: a category has no folder or no image, a file has another name, or no cues conflict.
    """

    def __init__(self, root: Path):
        folder = _find(root)
        categories = list(CATEGORIES)
        paths, rows = [], []
        for category in categories:
            names = files.names_in(folder / category, WAY_OUT)
            images = sorted(name for name in names if name.lower().endswith(formats.SUFFIXES))
            if not images:
                raise InputError(f"{folder / category} has no images; {WAY_OUT}")
            for name in images:
                shape, texture = _cues(folder / category / name)
                if shape != texture:
                    paths.append(f"{category}/{name}")
                    rows.append((categories.index(shape), categories.index(texture)))
        if not rows:
            raise InputError(f"{folder}: every image has the texture of its shape; {WAY_OUT}")
        self.mechanisms = np.array(rows, np.int32)
        super().__init__(
            root=folder,
            split="test",
            paths=paths,
            ids=paths,
            labels=imbalance.one_hot(self.mechanisms[:, 0], len(categories)),
            class_names=tuple(categories),
        )


def _find(root: Path) -> Path:
    """The folder of the 16 categories' folders."""
    for folder in (root, root / FOLDER, root / "stimuli" / FOLDER):
        missing = [name for name in CATEGORIES if not (folder / name).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(CATEGORIES):
            raise InputError(f"{folder} has no folder {', '.join(missing)}; {WAY_OUT}")
    state = (
        "has none of the 16 categories' folders (airplane, bear, …)" if root.is_dir() else "is not a folder"
    )
    raise InputError(f"{root} {state}; {WAY_OUT}")


def _cues(path: Path) -> tuple[str, str]:
    """The categories of shape and texture by a file's name."""
    match = _NAME.fullmatch(path.stem)
    cues = match.groups() if match else ()
    if len(cues) != 2 or cues[0] != path.parent.name or cues[1] not in CATEGORIES:
        raise InputError(
            f"{path}: the name does not say shape and texture, as {path.parent.name}1-clock2.png does for the texture "
            f"of a clock; {WAY_OUT}"
        )
    return cues[0], cues[1]
