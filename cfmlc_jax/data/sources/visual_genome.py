"""Visual Genome (objects v1.2) with the categories of a vocabulary file, such as VG-256's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.data.sources import annotations, boxes, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

WAY_OUT = "get images.zip, images2.zip and objects_v1_2.json.zip and unpack them in one folder"
FOLDERS = ("VG_100K", "VG_100K_2")
VAL_FRACTION = 0.3
# VG-256: 70 % of the 108,077 images, of which a few have no category.
NUM_CLASSES, NUM_TRAIN = 256, 75_653
_NUMBER = re.compile(r"[0-9]{1,18}")

# Adjectives of colour, size and material that the reference (MLC-PAT) removes from an object's name.
ADJECTIVES = {
    *(
        "black",
        "blue",
        "brown",
        "gray",
        "green",
        "grey",
        "orange",
        "pink",
        "red",
        "silver",
        "white",
        "yellow",
    ),
    *("dark", "large", "long", "metal", "small", "tall", "wooden"),
}


class CategoryObject(NamedTuple):
    """An object with a category: its column, and its box (left, top, width, height), or why it has no box."""

    column: int
    box: tuple | str


class VisualGenome(files.FileSource):
    """A split of Visual Genome: `root/objects.json`, images in `root/VG_100K` and `root/VG_100K_2`.

    As in the reference (MLC-PAT): an object's first name decides (`object_name`); images without a
    category are dropped, the others sorted by number and split 70 to 30 by the permutation of
    NumPy's RandomState(1), each part in order of number again. Boxes are those of the objects that
    have a category, as annotated: some reach beyond their image. One that cannot be used is left out
    and reported (`boxes().left_out`).

    Args:
        root: the folder above.
        split: "train" or "val".
        vocabulary: JSON file, category -> list of object names; the classes are in its order.

    Raises:
        InputError: missing or broken files, an image listed twice, objects without a name,
            missing images, a split without images.
    """

    def __init__(self, root: str | Path, split: str, vocabulary: str | Path):
        files.require_split(split)
        root = path_of(root)
        vocabulary = path_of(vocabulary)
        path = root / "objects.json"
        kept = annotations.cached(
            f"vg256_{split}", [path, vocabulary], lambda: _read(path, vocabulary, split)
        )
        super().__init__(
            root=root,
            split=split,
            paths=_paths(root, kept.files),
            ids=kept.ids,
            labels=kept.labels,
            class_names=kept.class_names,
            boxes=kept.boxes,
        )


def _read(path: Path, vocabulary: Path, split: str) -> annotations.Annotations:
    """The content of objects.json for a split."""
    class_names, class_of = read_vocabulary(vocabulary)
    numbers, image_objects = _images(path, class_of)
    rows = split_rows(len(numbers), split)
    if not len(rows):
        raise InputError(
            f"{path}: {len(numbers)} images have a category, too few for a {split} split; {WAY_OUT}"
        )

    objects = [(row, entry) for row, number in enumerate(rows) for entry in image_objects[number]]
    labels = np.zeros((len(rows), len(class_names)), np.uint8)
    labels[[row for row, _ in objects], [entry.column for _, entry in objects]] = 1
    usable = [(row, entry) for row, entry in objects if not isinstance(entry.box, str)]
    left_out = boxes.LeftOut()
    for _, entry in objects:
        if isinstance(entry.box, str):
            left_out.add(str(path), entry.box)
    return annotations.Annotations(
        ids=[str(numbers[row]) for row in rows],
        files=[f"{numbers[row]}.jpg" for row in rows],
        labels=labels,
        class_names=class_names,
        boxes=boxes.from_annotations(
            [row for row, _ in usable],
            [entry.box for _, entry in usable],
            [entry.column for _, entry in usable],
            [None] * len(rows),
            str(left_out),
        ),
    )


def read_vocabulary(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Category names [k], and the category's index of every object name.

    An object name in two categories belongs to the later one, as in the reference (VG-256 has two such names).

    Raises:
        InputError: the file does not exist, has broken JSON, or is not an object of lists of names.
    """
    # Read as pairs, because a dict would hide that a category is listed twice.
    document = files.read_json(
        path, "give the vocabulary: JSON, category -> list of object names", object_pairs_hook=tuple
    )
    if not isinstance(document, tuple) or not document:
        raise InputError(f"{path}: not a JSON object; write category -> list of object names")
    class_of: dict[str, int] = {}
    for column, (category, names) in enumerate(document):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{path}: category {fields.shown(category)} has {fields.shown(names)}; write a list of object names"
            )
        class_of.update(dict.fromkeys(map(fields.composed, names), column))
    return fields.class_names((category for category, _ in document), str(path)), class_of


def object_name(annotated: str) -> str:
    """The name that is looked up in the vocabulary: "Small brown dog." -> "dog", but "hot dog" -> "hot dog".

    It is in lower case without a final full stop. If all words before the last are `ADJECTIVES`, only the
    last word is kept.
    """
    name = annotated.lower().strip()
    if name.endswith("."):
        name = name[:-1].strip()
    *before, last = name.split() or [""]
    return last if ADJECTIVES.issuperset(before) and before else name


def split_rows(images: int, split: str) -> np.ndarray:
    """Indices [n] of a split's images among all images sorted by number, ascending; the same on every machine."""
    val = int(np.round(VAL_FRACTION * images))
    order = np.random.RandomState(1).permutation(images)
    return np.sort(order[: images - val] if split == "train" else order[images - val :])


def _images(path: Path, class_of: dict[str, int]) -> tuple[list[int], list[list[CategoryObject]]]:
    """Numbers [n], ascending, of the images that have objects with a category, and these objects."""
    document = files.read_json(path, WAY_OUT, object_hook=_shrink(path, class_of))
    if not isinstance(document, list):
        raise InputError(f"{path}: not a list of images; {WAY_OUT}")
    objects_of: dict[int, list[CategoryObject]] = {}
    for place, image in enumerate(document):
        number, objects = _image(f"{path}: image {place} of the list", image)
        if objects_of.setdefault(number, objects) != objects:
            raise InputError(f"{path}: image {number} is listed twice, with other objects; {WAY_OUT}")
    numbers = sorted(number for number, objects in objects_of.items() if objects)
    return numbers, [objects_of[number] for number in numbers]


def _image(where: str, image: Any) -> tuple[int, list[CategoryObject]]:
    """An image's number, and its objects with a category."""
    if not isinstance(image, dict):
        raise InputError(f"{where} is not an object with 'image_id' and 'objects'; {WAY_OUT}")
    key = fields.as_key(image.get("image_id")) or ""
    if not _NUMBER.fullmatch(key):
        raise InputError(f"{where} has no usable 'image_id'; {WAY_OUT}")
    objects = image.get("objects")
    if not isinstance(objects, list) or not all(
        entry is None or isinstance(entry, CategoryObject) for entry in objects
    ):
        raise InputError(f"{where} has no usable 'objects', a list of objects; {WAY_OUT}")
    return int(key), [entry for entry in objects if entry is not None]


def _shrink(path: Path, class_of: dict[str, int]) -> Callable[[dict], Any]:
    """A hook of the JSON parser that reduces each object to its class and box, or to None without a class.

    The file has millions of objects, which would fill gigabytes as dicts.
    """

    def shrink(entry: dict) -> Any:
        if "objects" in entry or "image_id" in entry:
            return entry
        names = entry.get("names")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise InputError(
                f"{path}: object {fields.shown(entry.get('object_id'))} has no usable name; {WAY_OUT}"
            )
        column = class_of.get(object_name(fields.composed(names[0])))
        if column is None:
            return None
        box = tuple(entry.get(side) for side in "xywh")
        reason = boxes.reason_against(box)
        object_id = fields.shown(entry.get("object_id"))
        return CategoryObject(column, f"object {object_id}: {reason}" if reason else box)

    return shrink


def _paths(root: Path, names: list[str]) -> list[str]:
    folders = [folder for folder in FOLDERS if (root / folder).is_dir()]
    if not folders:
        raise InputError(f"{root}: neither {FOLDERS[0]} nor {FOLDERS[1]} in it; {WAY_OUT}")
    folder_of = {name: folder for folder in folders for name in files.names_in(root / folder, WAY_OUT)}
    files.require_files(names, folder_of, root, WAY_OUT)
    return [f"{folder_of[name]}/{name}" for name in names]
