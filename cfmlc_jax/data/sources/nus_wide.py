"""NUS-WIDE in its official layout: 81 concepts, 161,789 training images, 107,859 test images ("val")."""

from pathlib import Path

import numpy as np

from cfmlc_jax.data.sources import available, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

NUM_CLASSES, NUM_TRAIN, NUM_TEST = 81, 161_789, 107_859  # of the official lists
WAY_OUT = "unpack ImageList.zip, ConceptsList.zip and Groundtruth.zip in one folder"
FOLDER = "Flickr"
_PARTS = {"train": "Train", "val": "Test"}


class NusWide(files.FileSource):
    """A split of NUS-WIDE: the official training list as "train", the test list as "val".

    The concepts are the lines of `ConceptsList/Concepts81.txt`, the images those of `ImageList/TrainImagelist.txt`,
    and line i of `Groundtruth/TrainTestLabels/Labels_<concept>_Train.txt` is the label of image i. `Concepts81.txt` and
    `TrainTestLabels` may also be in the root. Images without a concept belong to the split. Images that are not in
    `root/Flickr` are left out and counted (`left_out`).

    Args:
        root: the folder that contains these.
        split: "train" or "val".

    Raises:
        InputError: missing files, a label that is neither 0 nor 1, another number of labels than of images (with file
            and line), an image listed twice, or no image.
    """

    def __init__(self, root: str | Path, split: str):
        files.require_split(split)
        root, part = path_of(root), _PARTS[split]
        path = root / "ImageList" / f"{part}Imagelist.txt"
        names = [fields.relative_path(line, f"{path} line {n}", FOLDER) for n, line in _lines(path)]
        if not names:
            raise InputError(f"{path}: no image in it; {WAY_OUT}")
        ids = [name.removeprefix(f"{FOLDER}/") for name in names]
        _require_unique(path, ids)
        concepts = _first(root, "ConceptsList/Concepts81.txt", "Concepts81.txt")
        class_names = fields.class_names([line for _, line in _lines(concepts)], str(concepts))
        folder = _first(root, "Groundtruth/TrainTestLabels", "TrainTestLabels")
        labels = [_labels(folder / f"Labels_{name}_{part}.txt", len(ids), path) for name in class_names]
        found = available.on_disk(
            root, names, FOLDER, f"put the images into {FOLDER}/, in the folders of the list"
        )
        super().__init__(
            root=root,
            split=split,
            paths=found.paths,
            ids=[ids[row] for row in found.rows],
            labels=np.stack(labels, axis=1)[found.rows],
            class_names=class_names,
        )
        self._left_out = found.left_out

    @property
    def left_out(self) -> str:
        """A line about the images that are not on disk; "" if all are."""
        return self._left_out


def _first(root: Path, *places: str) -> Path:
    """The first place that exists, else the first."""
    return next((root / place for place in places if (root / place).exists()), root / places[0])


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of the lines that are not empty."""
    lines = files.read_text(path, WAY_OUT).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _require_unique(path: Path, ids: list[str]) -> None:
    earlier: set[str] = set()
    for each in ids:
        if each in earlier:
            raise InputError(f"{path}: image {each!r} is listed twice; use the official list")
        earlier.add(each)


def _labels(path: Path, images: int, image_list: Path) -> np.ndarray:
    """The labels [n] of a concept."""
    lines = _lines(path)
    for number, line in lines:
        if line not in ("0", "1"):
            raise InputError(f"{path} line {number}: {line!r} is neither 0 nor 1; {WAY_OUT}")
    if len(lines) != images:
        raise InputError(
            f"{path}: {len(lines):,} labels, but {image_list.name} has {images:,} images; use files of one release"
        )
    return np.array([line == "1" for _, line in lines], np.uint8)
