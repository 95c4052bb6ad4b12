"""PASCAL VOC 2007 in its official layout: 20 classes, trainval for training, test for validation."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from cfmlc_jax.data.sources import boxes, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

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
NUM_TRAIN = 5_011  # of the official list
WAY_OUT = "unpack VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar in one folder"
_LISTS = {"train": "trainval", "val": "test"}


class Voc(files.FileSource):
    """A split of VOC 2007: trainval as "train", test as "val".

    As in the reference (MLC-PAT): a class is present if `ImageSets/Main/<class>_<list>.txt`
    has 1; with 0 (only difficult instances) and -1 it is absent; images without a class are excluded.
    If there is a folder `Annotations`, the boxes are those of instances that are not difficult, so that boxes
    and labels agree. Only `boxes` reads its files, because training needs no boxes. Unusable files and boxes
    are excluded and reported (`boxes().left_out`).

    Args:
        root: the folder that contains `VOCdevkit`, or `VOCdevkit` itself, or `VOC2007` itself: the
            first of `root/VOCdevkit/VOC2007`, `root/VOC2007`, `root` that has `ImageSets/Main`.
        split: "train" or "val".

    Raises:
        InputError: missing or broken files, a split without images.
    """

    def __init__(self, root: str | Path, split: str):
        files.require_split(split)
        root = find_root(path_of(root))
        present = _present_classes(root, _LISTS[split])
        ids = sorted(present)
        if not ids:
            raise InputError(f"{root}: no image of '{_LISTS[split]}' has a class; {WAY_OUT}")
        labels = np.zeros((len(ids), len(CLASS_NAMES)), np.uint8)
        for row, key in enumerate(ids):
            labels[row, present[key]] = 1
        names = [fields.relative_path(f"{key}.jpg", f"{root}: image {key}", "JPEGImages") for key in ids]
        files.require_own_files(ids, names, str(root))
        on_disk = files.find_files(root, names)
        files.require_files(names, on_disk, root, WAY_OUT)
        super().__init__(
            root=root,
            split=split,
            paths=[on_disk[name] for name in names],
            ids=ids,
            labels=labels,
            class_names=CLASS_NAMES,
        )

    def boxes(self) -> boxes.Boxes | None:
        """The boxes of its images, read from one file per image; None without a folder `Annotations`."""
        annotations, left_out = path_of(self._root) / "Annotations", boxes.LeftOut()
        if not annotations.is_dir():
            return None
        images = [read_boxes(annotations / f"{key}.xml", left_out) for key in self.ids]
        return boxes.from_annotations(
            [row for row, image in enumerate(images) for _ in image.instances],
            [box for image in images for _, box in image.instances],
            [column for image in images for column, _ in image.instances],
            [image.size for image in images],
            str(left_out),
        )


def find_root(root: Path) -> Path:
    """The folder `VOC2007` for a root that the user gave (see `Voc`).

    Raises:
        InputError: it is in none of the three places.
    """
    for place in (root / "VOCdevkit" / "VOC2007", root / "VOC2007", root):
        if (place / "ImageSets" / "Main").is_dir():
            return place
    raise InputError(f"{root}: no VOCdevkit/VOC2007/ImageSets/Main in it; {WAY_OUT}")


def _present_classes(root: Path, image_list: str) -> dict[str, list[int]]:
    """Image number -> classes that are present with an instance that is not difficult."""
    present: dict[str, list[int]] = {}
    for column, name in enumerate(CLASS_NAMES):
        path = root / "ImageSets" / "Main" / f"{name}_{image_list}.txt"
        lines: dict[str, tuple[int, str]] = {}
        for number, line in enumerate(files.read_text(path, WAY_OUT).splitlines(), 1):
            key, value = _row(path, number, line)
            first_line, first_value = lines.setdefault(key, (number, value))
            if first_value != value:
                raise InputError(
                    f"{path} line {number}: {key} is {value}, but {first_value} in line {first_line}; keep one of them"
                )
        for key, (_, value) in lines.items():
            if value == "1":
                present.setdefault(key, []).append(column)
    return present


def _row(path: Path, number: int, line: str) -> tuple[str, str]:
    columns = line.split()
    key = fields.as_text(columns[0]) if columns else None
    if key is None or len(columns) != 2 or columns[1] not in ("-1", "0", "1"):
        raise InputError(f"{path} line {number}: {line!r} is not an image and -1, 0 or 1; {WAY_OUT}")
    return key, columns[1]


class Annotated(NamedTuple):
    """Annotations of an image.

    instances: class and box [left, top, width, height] of each instance that is not difficult.
    size: width and height of the image, if known.
    """

    instances: list[tuple[int, list[float]]]
    size: boxes.Size | None


def read_boxes(path: Path, left_out: boxes.LeftOut) -> Annotated:
    """The instances of a VOC file that are not difficult, and the size of its image.

    VOC counts pixels from 1, and its right and bottom pixels belong to the box. Our boxes count from 0, and
    their right and bottom are exclusive.

    Args:
        path: the file.
        left_out: receives files and boxes that cannot be used.
    """
    try:
        document = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        left_out.add(str(path), str(error.strerror))
        return Annotated([], None)
    # Python's XML parser raises LookupError and ValueError for unknown encodings.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        left_out.add(str(path), f"broken XML ({' '.join(str(error).split())})")
        return Annotated([], None)
    size = boxes.size_of(*(_number(document.findtext(f"size/{side}")) for side in ("width", "height")))
    instances = []
    for number, instance in enumerate(document.findall("object")):
        name = instance.findtext("name", "").strip()
        if instance.findtext("difficult", "0").strip() == "1":
            continue
        box = _box(instance)
        known = "" if name in CLASS_NAMES else f"{fields.shown(name)} is not a class of VOC 2007"
        reason = known or boxes.reason_against(box, size)
        if reason:
            left_out.add(f"{path}: object {number}", reason)
        else:
            instances.append((CLASS_NAMES.index(name), box))
    return Annotated(instances, size)


def _box(instance: ElementTree.Element) -> list:
    """[left, top, width, height]; or the four texts as written if one of them is no number."""
    written = [instance.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    sides = [number for number in map(_number, written) if number is not None]
    if len(sides) < 4:
        return written
    left, top, right, bottom = sides
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
