"""PASCAL VOC 2007 in its official layout: 20 classes, trainval to train on, test to validate on."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cfmlc_jax.data.sources import files
from cfmlc_jax.errors import InputError

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
WAY_OUT = "unpack VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar in one folder"
_LISTS = {"train": "trainval", "val": "test"}


class Voc(files.FileSource):
    """A split of VOC 2007: trainval as "train", test as "val".

    As in the reference (MLC-PAT): a class is present where `ImageSets/Main/<class>_<list>.txt`
    says 1; 0 (only difficult instances) and -1 are absent; images without a class are dropped.
    With a folder `Annotations`, records have the boxes of the instances that are not difficult,
    so that boxes and labels agree; they are read with the image.

    Args:
        root: the folder that holds `VOCdevkit`, or `VOCdevkit` itself, or `VOC2007` itself: the
            first of `root/VOCdevkit/VOC2007`, `root/VOC2007`, `root` that has `ImageSets/Main`.
        split: "train" or "val".

    Raises:
        InputError: missing or broken files, a split without images.
    """

    def __init__(self, root: str | Path, split: str):
        files.require_split(split)
        root = find_root(Path(root).expanduser())
        present = _present_classes(root, _LISTS[split])
        ids = sorted(present)
        if not ids:
            raise InputError(f"{root}: no image of '{_LISTS[split]}' has a class; {WAY_OUT}")
        labels = np.zeros((len(ids), len(CLASS_NAMES)), np.uint8)
        for row, key in enumerate(ids):
            labels[row, present[key]] = 1
        _require(root / "JPEGImages", ids, ".jpg")
        self._annotations = root / "Annotations" if (root / "Annotations").is_dir() else None
        if self._annotations:
            _require(self._annotations, ids, ".xml")
        super().__init__(
            root=root,
            split=split,
            paths=[f"JPEGImages/{key}.jpg" for key in ids],
            ids=ids,
            labels=labels,
            class_names=CLASS_NAMES,
        )

    def boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Corners float32 [n, 4] and classes int32 [n] of one image; None without `Annotations`."""
        return read_boxes(self._annotations / f"{self.ids[index]}.xml") if self._annotations else None


def find_root(root: Path) -> Path:
    """The folder `VOC2007` in, or at, a folder that a user named (rule: see `Voc`).

    Raises:
        InputError: it is in none of the three places.
    """
    for place in (root / "VOCdevkit" / "VOC2007", root / "VOC2007", root):
        if (place / "ImageSets" / "Main").is_dir():
            return place
    raise InputError(f"{root}: no VOCdevkit/VOC2007/ImageSets/Main in it; {WAY_OUT}")


def _require(folder: Path, ids: list[str], suffix: str) -> None:
    files.require_files((key + suffix for key in ids), files.names_in(folder, WAY_OUT), folder, WAY_OUT)


def _present_classes(root: Path, image_list: str) -> dict[str, list[int]]:
    """Image number -> classes that are present and not only as difficult instances."""
    present: dict[str, list[int]] = {}
    for column, name in enumerate(CLASS_NAMES):
        path = root / "ImageSets" / "Main" / f"{name}_{image_list}.txt"
        for number, line in enumerate(files.read_text(path, WAY_OUT).splitlines(), 1):
            fields = line.split()
            if len(fields) != 2 or fields[1] not in ("-1", "0", "1"):
                raise InputError(f"{path} line {number}: {line!r} is not an image and -1, 0 or 1; {WAY_OUT}")
            if fields[1] == "1":
                present.setdefault(fields[0], []).append(column)
    return present


def read_boxes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Corners float32 [n, 4] and classes int32 [n] of the instances of a VOC file that are not difficult.

    VOC counts pixels from 1 and its right and bottom pixels belong to the box; ours count from 0
    and end before the last.

    Raises:
        InputError: broken XML, an unknown class, a box that is not four numbers.
    """
    try:
        document = ElementTree.fromstring(files.read_text(path, WAY_OUT))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: broken XML ({error}); {WAY_OUT}") from error
    corners, classes = [], []
    for instance in document.findall("object"):
        name = instance.findtext("name", "").strip()
        if name not in CLASS_NAMES:
            raise InputError(f"{path}: {name!r} is not a class of VOC 2007; {WAY_OUT}")
        if instance.findtext("difficult", "0").strip() != "1":
            corners.append(_corners(path, instance))
            classes.append(CLASS_NAMES.index(name))
    return np.array(corners, np.float32).reshape(-1, 4), np.array(classes, np.int32)


def _corners(path: Path, instance: ElementTree.Element) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (
            float(instance.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError as error:
        raise InputError(f"{path}: a box is not four numbers ({error}); {WAY_OUT}") from error
    return left - 1, top - 1, right, bottom
