"""MS-COCO 2014 in its official layout: 80 classes, 82,081 images to train on, 40,137 to validate on."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.data.sources import boxes, files
from cfmlc_jax.errors import InputError

YEAR = "2014"
WAY_OUT = "get train2014.zip, val2014.zip and annotations_trainval2014.zip and unpack them in one folder"

# Images of 2014 carry split and year in their names, those of 2017 are bare numbers.
_OFFICIAL_NAME = re.compile(r"(?:COCO_([a-z]+)(\d{4})_)?\d{12}\.[A-Za-z]+")


class Coco(files.FileSource):
    """A split of COCO 2014: `root/train2014`, `root/val2014`, `root/annotations/instances_*2014.json`.

    As in the reference (MLC-PAT): an image counts if it has an instance annotation, crowds
    included; images are sorted by id *as a string*; classes are in the order of the file's
    categories. An image's boxes are all its annotations', crowds included.

    Args:
        root: the folder above.
        split: "train" (train2014) or "val" (val2014).

    Raises:
        InputError: missing or broken files, annotations of another year or split, annotations of
            unknown images or categories, missing images, no image at all.
    """

    def __init__(self, root: str | Path, split: str):
        files.require_split(split)
        root = Path(root).expanduser()
        folder = f"{split}{YEAR}"
        path = _annotation_file(root, split)
        document = files.read_json(path, WAY_OUT)
        _require_year(path, document)
        file_names = {str(key): name for key, name in _rows(path, document, "images", "id", "file_name")}
        _require_names(path, file_names.values(), folder)

        class_names, columns, owners, sizes = _annotations(path, document, file_names)
        ids = sorted(set(owners))
        if not ids:
            raise InputError(f"{path}: no image has an annotation; {WAY_OUT}")
        row_of = {key: row for row, key in enumerate(ids)}
        rows = np.array([row_of[key] for key in owners])
        labels = np.zeros((len(ids), len(class_names)), np.uint8)
        labels[rows, columns] = 1

        names = [file_names[key] for key in ids]
        _require_images(names, root / folder)
        super().__init__(
            root=root,
            split=split,
            paths=[f"{folder}/{name}" for name in names],
            ids=ids,
            labels=labels,
            class_names=class_names,
            boxes=boxes.from_sizes(rows, sizes, columns, len(ids)),
        )


def _annotation_file(root: Path, split: str) -> Path:
    path = root / "annotations" / f"instances_{split}{YEAR}.json"
    if not path.is_file():
        others = sorted(other.stem[-4:] for other in path.parent.glob(f"instances_{split}20??.json"))
        if others:
            raise InputError(f"{path.parent} holds COCO {', '.join(others)}, wanted {YEAR}; {WAY_OUT}")
    return path


def _rows(path: Path, document: Any, table: str, *fields: str) -> list[tuple]:
    """The named fields of each row of one of the document's lists."""
    rows = document.get(table) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{path}: no list '{table}', so not an instances file of COCO; {WAY_OUT}")
    picked = []
    for number, row in enumerate(rows):
        try:
            picked.append(tuple(row[field] for field in fields))
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: entry {number} of '{table}' lacks {error}; {WAY_OUT}") from error
    return picked


def _require_year(path: Path, document: Any) -> None:
    info = document.get("info") if isinstance(document, dict) else None
    year = info.get("year") if isinstance(info, dict) else None
    if year is not None and str(year) != YEAR:
        raise InputError(f"{path}: annotations of {year}, wanted {YEAR}; {WAY_OUT}")


def _belongs_to(file_name: str) -> str | None:
    """The folder that an official name belongs to, say "val2014"; "2017" for a bare number; None otherwise."""
    match = _OFFICIAL_NAME.fullmatch(file_name)
    if match is None:
        return None
    split, year = match.groups()
    return "2017" if year is None else f"{split}{year}"


def _require_names(path: Path, names: Iterable[str], folder: str) -> None:
    for name in names:
        if _belongs_to(name) not in (None, folder):
            raise InputError(f"{path}: image {name} is of {_belongs_to(name)}, wanted {folder}; {WAY_OUT}")


def _annotations(path: Path, document: Any, file_names: dict[str, str]):
    """Class names [k]; and for each annotation its class [m], image id [m] and box [m, 4]."""
    categories = _rows(path, document, "categories", "id", "name")
    column_of = {key: column for column, (key, _) in enumerate(categories)}
    class_names = tuple(name for _, name in categories)
    if len(column_of) < len(categories) or len(set(class_names)) < len(categories):
        raise InputError(f"{path}: a category id or name occurs twice; {WAY_OUT}")

    columns, owners, sizes = [], [], []
    rows = _rows(path, document, "annotations", "image_id", "category_id", "bbox")
    for number, (image, category, box) in enumerate(rows):
        if category not in column_of:
            raise InputError(
                f"{path}: annotation {number} has the unknown category id {category!r}; {WAY_OUT}"
            )
        if str(image) not in file_names:
            raise InputError(f"{path}: annotation {number} has the unknown image id {image!r}; {WAY_OUT}")
        if not _is_box(box):
            raise InputError(f"{path}: annotation {number} has the box {box!r}, not 4 numbers; {WAY_OUT}")
        columns.append(column_of[category])
        owners.append(str(image))
        sizes.append(box)
    return class_names, columns, owners, sizes


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)


def _require_images(names: list[str], folder: Path) -> None:
    present = files.names_in(folder, WAY_OUT)
    if present and present.isdisjoint(names):
        found = min(present)
        of = f" (of {_belongs_to(found)})" if _belongs_to(found) else ""
        raise InputError(f"{folder} holds none of the images, but {found}{of}; wanted {names[0]}; {WAY_OUT}")
    files.require_files(names, present, folder, WAY_OUT)
