"""MS-COCO 2014 in its official layout: 80 classes, 82,081 training images, 40,137 validation images."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.data.sources import annotations, boxes, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

YEAR = "2014"
NUM_CLASSES, NUM_TRAIN = 80, 82_081  # of the official files; 702 of 82,783 images have no annotation
WAY_OUT = "get train2014.zip, val2014.zip and annotations_trainval2014.zip and unpack them in one folder"

# Names of 2014 images contain split and year; names of 2017 images are plain numbers.
_OFFICIAL_NAME = re.compile(r"(?:COCO_([a-z]+)(\d{4})_)?\d{12}\.[A-Za-z]+")


class Image(NamedTuple):
    """An entry of `images`: its file relative to the root, and its size in pixels, if known."""

    file: str
    size: tuple[float, float] | None


class Instances(NamedTuple):
    """All entries of `annotations`, as lists of equal length.

    owners, columns: id of each annotation's image, and column of its class.
    boxes: [left, top, width, height] of each; None for a missing or unusable box.
    left_out: the unusable boxes.
    """

    owners: list[str]
    columns: list[int]
    boxes: list[list | None]
    left_out: boxes.LeftOut


class Coco(files.FileSource):
    """A split of COCO 2014: `root/train2014`, `root/val2014`, `root/annotations/instances_*2014.json`.

    As in the reference (MLC-PAT): images without an instance annotation are excluded, and crowds
    count as instances; images are sorted by id *as a string*; classes are in the order of the file's
    categories. An image's boxes are those of all its annotations, crowds included.

    Only labels are required: ids may be numbers or text, and boxes may be missing. An unusable box
    is excluded and reported (`boxes().left_out`).

    Args:
        root: the folder that contains these.
        split: "train" (train2014) or "val" (val2014).

    Raises:
        InputError: missing or broken files, annotations of another year or split, annotations of
            unknown images or categories, two images with the same id or file, missing images, or no
            image.
    """

    def __init__(self, root: str | Path, split: str):
        files.require_split(split)
        root = path_of(root)
        folder = f"{split}{YEAR}"
        path = _annotation_file(root, split)
        kept = annotations.cached(f"coco_{split}", [path], lambda: _read(path, folder))
        super().__init__(
            root=root,
            split=split,
            paths=_paths(root, folder, kept.files),
            ids=kept.ids,
            labels=kept.labels,
            class_names=kept.class_names,
            boxes=kept.boxes,
        )
        self._annotations = path

    def outlines(self, images: Iterable[int]) -> dict[tuple[int, int], list[Any]]:
        """What the annotation file says of the outlines of some images: (image, class) -> "segmentation" of each object.

        The file is read again, as only few commands need outlines; `sources.outlines.mask` draws them.

        Raises:
            InputError: the file cannot be read.
        """
        number: dict[str | None, int] = {self.ids[image]: image for image in images}

        def without_others(row: dict) -> dict:
            if "segmentation" in row and fields.as_key(row.get("image_id")) not in number:
                row.pop("segmentation")
            return row

        document = files.read_json(self._annotations, WAY_OUT, object_hook=without_others)
        column_of, _ = _categories(self._annotations, document)
        result: dict[tuple[int, int], list[Any]] = {}
        for row in document["annotations"]:
            image = number.get(fields.as_key(row["image_id"]))
            if image is not None:
                key = image, column_of[str(row["category_id"])]
                result.setdefault(key, []).append(row.get("segmentation"))
        return result


def _read(path: Path, folder: str) -> annotations.Annotations:
    """The content of an annotation file, for the images in a folder."""
    document = files.read_json(path, WAY_OUT, object_hook=_without_outlines)
    _require_year(path, document)
    images = _images(path, document, folder)
    column_of, class_names = _categories(path, document)
    instances = _instances(path, document, images, column_of)

    ids = sorted(set(instances.owners))
    if not ids:
        raise InputError(f"{path}: no image has an annotation; {WAY_OUT}")
    wanted = [images[key].file for key in ids]
    files.require_own_files(ids, wanted, str(path))
    row_of = {key: row for row, key in enumerate(ids)}
    rows = np.array([row_of[key] for key in instances.owners])
    columns = np.array(instances.columns)
    labels = np.zeros((len(ids), len(class_names)), np.uint8)
    labels[rows, columns] = 1
    usable = [number for number, box in enumerate(instances.boxes) if box is not None]
    return annotations.Annotations(
        ids=ids,
        files=wanted,
        labels=labels,
        class_names=class_names,
        boxes=boxes.from_annotations(
            rows[usable],
            [instances.boxes[number] for number in usable],
            columns[usable],
            [images[key].size for key in ids],
            str(instances.left_out),
        ),
    )


def _without_outlines(row: dict) -> dict:
    """A hook of the JSON parser. The outlines of the objects are most of the file, and would fill gigabytes."""
    row.pop("segmentation", None)
    return row


def _annotation_file(root: Path, split: str) -> Path:
    path = root / "annotations" / f"instances_{split}{YEAR}.json"
    if not path.is_file():
        others = sorted(other.stem[-4:] for other in path.parent.glob(f"instances_{split}20??.json"))
        if others:
            raise InputError(f"{path.parent} contains COCO {', '.join(others)}, wanted {YEAR}; {WAY_OUT}")
    return path


def _rows(path: Path, document: Any, table: str) -> list[dict]:
    """One of the document's lists of objects, by its name."""
    rows = document.get(table) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: no list '{table}', so this is no instances file of COCO; {WAY_OUT}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: entry {number} of '{table}' is {fields.shown(row)}, not an object")
    return rows


def _key(where: str, row: dict, field: str) -> str:
    """An id in a field of a row, as text."""
    _require_field(where, row, field)
    key = fields.as_key(row[field])
    if key is None:
        raise InputError(f"{where} has the {field} {fields.shown(row[field])}; write a whole number or text")
    return key


def _require_field(where: str, row: dict, field: str) -> None:
    if field not in row:
        raise InputError(f"{where} has no '{field}'; {WAY_OUT}")


def _require_year(path: Path, document: Any) -> None:
    info = document.get("info") if isinstance(document, dict) else None
    year = info.get("year") if isinstance(info, dict) else None
    if year is not None and str(year) != YEAR:
        raise InputError(f"{path}: annotations of {year}, wanted {YEAR}; {WAY_OUT}")


def _belongs_to(file_name: str) -> str | None:
    """The folder of an official file name, such as "val2014"; "2017" for a plain number; None for other names."""
    match = _OFFICIAL_NAME.fullmatch(file_name)
    if match is None:
        return None
    split, year = match.groups()
    return "2017" if year is None else f"{split}{year}"


def _images(path: Path, document: Any, folder: str) -> dict[str, Image]:
    """Id -> image; a repeated entry counts once."""
    images: dict[str, Image] = {}
    for number, row in enumerate(_rows(path, document, "images")):
        where = f"{path}: entry {number} of 'images'"
        key = _key(where, row, "id")
        _require_field(where, row, "file_name")
        file = fields.relative_path(row["file_name"], where, folder)
        image = Image(file, boxes.size_of(row.get("width"), row.get("height")))
        first = images.setdefault(key, image)
        if first.file != file:
            raise InputError(
                f"{where} gives {file} the id {key}, which {first.file} has already; give every image its own id"
            )
        name = file.rpartition("/")[2]
        if _belongs_to(name) not in (None, folder):
            raise InputError(
                f"{path}: image {name} belongs to {_belongs_to(name)}, wanted {folder}; {WAY_OUT}"
            )
    return images


def _categories(path: Path, document: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Category id -> column, and the class names [k]."""
    column_of: dict[str, int] = {}
    names: list[str] = []
    for number, row in enumerate(_rows(path, document, "categories")):
        where = f"{path}: entry {number} of 'categories'"
        key = _key(where, row, "id")
        _require_field(where, row, "name")
        name = fields.as_class_name(row["name"], where)
        if key in column_of or name in names:
            raise InputError(f"{where}: the id {key} or the name {name!r} occurs twice; {WAY_OUT}")
        column_of[key] = len(names)
        names.append(name)
    return column_of, tuple(names)


def _instances(path: Path, document: Any, images: dict[str, Image], column_of: dict[str, int]) -> Instances:
    instances = Instances([], [], [], boxes.LeftOut())
    for number, row in enumerate(_rows(path, document, "annotations")):
        where = f"{path}: annotation {number}"
        category, image = _key(where, row, "category_id"), _key(where, row, "image_id")
        if category not in column_of:
            raise InputError(f"{where} has the unknown category id {row['category_id']!r}; {WAY_OUT}")
        if image not in images:
            raise InputError(f"{where} has the unknown image id {row['image_id']!r}; {WAY_OUT}")
        # Tools write an empty box if an annotation describes the whole image.
        box = row.get("bbox") or None
        reason = "" if box is None else boxes.reason_against(box, images[image].size)
        if reason:
            instances.left_out.add(f"{where} (id {fields.shown(row.get('id'))})", reason)
        instances.columns.append(column_of[category])
        instances.owners.append(image)
        instances.boxes.append(None if reason else box)
    return instances


def _paths(root: Path, folder: str, wanted: list[str]) -> list[str]:
    """Paths of the images relative to the root, spelled as on disk."""
    on_disk = files.find_files(root, wanted)
    if not on_disk:
        present = files.names_in(root / folder, WAY_OUT)
        if present:
            first = min(present)
            belongs = f" (of {_belongs_to(first)})" if _belongs_to(first) else ""
            raise InputError(
                f"{root / folder} contains none of the images, but {first}{belongs}; "
                f"wanted {wanted[0].removeprefix(f'{folder}/')}; {WAY_OUT}"
            )
    files.require_files(wanted, on_disk, root, WAY_OUT)
    return [on_disk[file] for file in wanted]
