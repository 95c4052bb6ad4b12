"""ImageNet-9 of Xiao et al. (ICLR 2021): photos whose backgrounds were replaced, in variations."""

from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import files, imbalance
from cfmlc_jax.data.views import formats
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.imagenet_groups import IN9_CLASSES

# original: untouched. mixed_same, mixed_rand: on a background of the same class, or of a random one.
VARIATIONS = ("original", "mixed_same", "mixed_rand")
WAY_OUT = (
    "give the folder bg_challenge of the release of https://github.com/MadryLab/backgrounds_challenge "
    "(backgrounds_challenge_data.tar.gz)"
)


class ImageNet9(files.FileSource):
    """A single-label source of one variation: labels uint8 [n, 9].

    In the official layout, ROOT/mixed_same/val/00_dog/….JPEG: nine folders numbered from 00. Officially each
    variation has 450 images of each class.

    Args:
        root: the folder of the variations, or one that has it as bg_challenge.
        variation: one of `VARIATIONS`.

    Raises:
        InputError: the variation is missing, has not nine numbered folders, or one of them has no image.
    """

    def __init__(self, root: Path, variation: str):
        folder = _find(root, variation)
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if [name[:3] for name in names] != [f"{number:02d}_" for number in range(len(IN9_CLASSES))]:
            shown = ", ".join(names[:3]) or "none"
            raise InputError(
                f"{folder} has {len(names)} folders ({shown}, …), wanted nine, 00_dog to 08_fish; {WAY_OUT}"
            )
        paths, classes = [], []
        for number, name in enumerate(names):
            images = sorted(
                image
                for image in files.names_in(folder / name, WAY_OUT)
                if image.lower().endswith(formats.SUFFIXES)
            )
            if not images:
                raise InputError(f"{folder / name} has no images; {WAY_OUT}")
            paths += [f"{name}/{image}" for image in images]
            classes += [number] * len(images)
        super().__init__(
            root=folder,
            split=variation,
            paths=paths,
            ids=paths,
            labels=imbalance.one_hot(np.array(classes), len(IN9_CLASSES)),
            class_names=IN9_CLASSES,
        )


def _find(root: Path, variation: str) -> Path:
    for folder in (root, root / "bg_challenge"):
        if (folder / variation / "val").is_dir():
            return folder / variation / "val"
    state = f"has no folder {variation}/val" if root.is_dir() else "is not a folder"
    raise InputError(f"{root} {state}; {WAY_OUT}")
