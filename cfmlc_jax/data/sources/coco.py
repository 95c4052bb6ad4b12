"""MS-COCO 2014 and 2017 in their official layouts, and the parser of their annotation files.

2014: 80 classes, 82,081 training images, 40,137 validation images. 2017 has the same pictures in another split.
"""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.data.sources import annotations, boxes, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

YEAR = "2014"
NUM_CLASSES, NUM_TRAIN = 80, 82_081  # of the official files; 702 of 82,783 images have no annotation
NUM_TRAIN_2017 = 117_266  # of 118,287

# Names of 2014 images contain split and year; names of 2017 images are plain numbers.
_OFFICIAL_NAME = re.compile(r"(?:COCO_([a-z]+)(\d{4})_)?\d{12}\.[A-Za-z]+")


class InstancesFile(NamedTuple):
    """An annotation file of COCO's form.

    path: of the file.
    folder: of its images, relative to the root; "" for the root.
    way_out: the end of error messages.
    """

    path: Path
    folder: str
    way_out: str

    def __str__(self) -> str:
        return str(self.path)


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
    """A split of COCO 2014: `root/train2014`, `root/val2014`, `root/annotations/instances_*2014.json`; or of 2017.

    The pictures of 2014 are those of 2017, under other names. If the root has no folder train2014 or val2014 but
    train2017 or val2017, the images of 2014 are found there by id.

    As in the reference (MLC-PAT): images without an instance annotation are excluded, and crowds
    count as instances; images are sorted by id *as a string*; classes are in the order of the file's
    categories. An image's boxes are those of all its annotations, crowds included.

    Only labels are required: ids may be numbers or text, and boxes may be missing. An unusable box
    is excluded and reported (`boxes().left_out`).

    Args:
        root: the folder that contains these.
        split: "train" (train2014) or "val" (val2014).
        year: "2014" or "2017", whose split is read.

    Raises:
        InputError: missing or broken files, annotations of another year or split, annotations of
            unknown images or categories, two images with the same id or file, missing images, or no
            image.
    """

    def __init__(self, root: str | Path, split: str, *, year: str = YEAR):
        files.require_split(split)
        root = path_of(root)
        file = _annotation_file(root, split, year)
        name = f"coco_{split}" if year == YEAR else f"coco{year}_{split}"
        kept = annotations.cached(name, [file.path], lambda: read(file, year=year))
        super().__init__(
            root=root,
            split=split,
            paths=_paths(root, file, kept.files, year),
            ids=kept.ids,
            labels=kept.labels,
            class_names=kept.class_names,
            boxes=kept.boxes,
        )
        self._annotations = file

    def outlines(self, images: Iterable[int]) -> dict[tuple[int, int], list[Any]]:
        """What the annotation file says of the outlines of some images: see `outlines`."""
        return outlines(self._annotations, {self.ids[image]: image for image in images})


def outlines(file: InstancesFile, numbers: dict[str | None, int]) -> dict[tuple[int, int], list[Any]]:
    """The outlines of objects: (number of the image, class) -> the "segmentation" of each of its objects.

    The file is read again, as only few commands need outlines; `sources.outlines.mask` draws them.

    Args:
        file: the annotation file of a split that has been read.
        numbers: id of an image -> its number; other images are left out.

    Raises:
        InputError: the file cannot be read.
    """

    def without_others(row: dict) -> dict:
        if "segmentation" in row and fields.as_key(row.get("image_id")) not in numbers:
            row.pop("segmentation")
        return row

    document = files.read_json(file.path, file.way_out, object_hook=without_others)
    column_of, _ = _categories(file, document)
    result: dict[tuple[int, int], list[Any]] = {}
    for row in document["annotations"]:
        image = numbers.get(fields.as_key(row["image_id"]))
        if image is not None:
            key = image, column_of[str(row["category_id"])]
            result.setdefault(key, []).append(row.get("segmentation"))
    return result


def read(
    file: InstancesFile,
    *,
    year: str | None = None,
    choose: Callable[[dict[str, Image]], Collection[str]] | None = None,
) -> annotations.Annotations:
    """The content of an annotation file.

    Args:
        file: the file.
        year: of the official files, whose images belong to the year and the folder; None: of any other file.
        choose: a function of all images by id -> the ids of the images to keep, annotated or not; None: those with an
            annotation.

    Raises:
        InputError: as `Coco`.
    """
    document = files.read_json(file.path, file.way_out, object_hook=_without_outlines)
    if year is not None:
        _require_year(file, document, year)
    images = _images(file, document)
    if year is not None:
        _require_own_images(file, images)
    column_of, class_names = _categories(file, document)
    instances = _instances(file, document, images, column_of)

    ids = sorted(set(instances.owners) if choose is None else choose(images))
    if not ids:
        raise InputError(f"{file}: no image has an annotation; {file.way_out}")
    wanted = [images[key].file for key in ids]
    files.require_own_files(ids, wanted, str(file))
    row_of = {key: row for row, key in enumerate(ids)}
    if choose is not None:
        instances = _of_images(instances, row_of)
    rows = np.array([row_of[key] for key in instances.owners], np.int64)
    columns = np.array(instances.columns, np.int64)
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


def _of_images(instances: Instances, kept: Collection[str]) -> Instances:
    """The annotations of the kept images; unusable boxes of the others are reported too."""
    places = [place for place, owner in enumerate(instances.owners) if owner in kept]
    owners, columns, corners, left_out = instances
    return Instances(
        [owners[place] for place in places],
        [columns[place] for place in places],
        [corners[place] for place in places],
        left_out,
    )


def _annotation_file(root: Path, split: str, year: str) -> InstancesFile:
    path = root / "annotations" / f"instances_{split}{year}.json"
    archives = f"train{year}.zip, val{year}.zip and annotations_trainval{year}.zip"
    file = InstancesFile(path, f"{split}{year}", f"get {archives} and unpack them in one folder")
    if not path.is_file():
        others = sorted(other.stem[-4:] for other in path.parent.glob(f"instances_{split}20??.json"))
        if others:
            raise InputError(
                f"{path.parent} contains COCO {', '.join(others)}, wanted {year}; {file.way_out}"
            )
    return file


def _rows(file: InstancesFile, document: Any, table: str) -> list[dict]:
    """One of the document's lists of objects, by its name."""
    rows = document.get(table) if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InputError(f"{file}: no list '{table}', so this is no instances file of COCO; {file.way_out}")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{file}: entry {number} of '{table}' is {fields.shown(row)}, not an object")
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
        raise InputError(f"{where} has no '{field}'; write it as COCO's annotation files do")


def _require_year(file: InstancesFile, document: Any, wanted: str) -> None:
    info = document.get("info") if isinstance(document, dict) else None
    year = info.get("year") if isinstance(info, dict) else None
    if year is not None and str(year) != wanted:
        raise InputError(f"{file}: annotations of {year}, wanted {wanted}; {file.way_out}")


def _belongs_to(file_name: str) -> str | None:
    """The folder of an official file name, such as "val2014"; "2017" for a plain number; None for other names."""
    match = _OFFICIAL_NAME.fullmatch(file_name)
    if match is None:
        return None
    split, year = match.groups()
    return "2017" if year is None else f"{split}{year}"


def _images(file: InstancesFile, document: Any) -> dict[str, Image]:
    """Id -> image; a repeated entry counts once."""
    images: dict[str, Image] = {}
    for number, row in enumerate(_rows(file, document, "images")):
        where = f"{file}: entry {number} of 'images'"
        key = _key(where, row, "id")
        _require_field(where, row, "file_name")
        written = fields.relative_path(row["file_name"], where, file.folder)
        image = Image(written, boxes.size_of(row.get("width"), row.get("height")))
        first = images.setdefault(key, image)
        if first.file != written:
            raise InputError(
                f"{where} gives {written} the id {key}, which {first.file} has already; give every image its own id"
            )
    return images


def _require_own_images(file: InstancesFile, images: dict[str, Image]) -> None:
    """Raise unless every official file name is one of the folder's year and split."""
    # Names of 2017 do not tell the split.
    own = (None, "2017" if file.folder.endswith("2017") else file.folder)
    for image in images.values():
        name = image.file.rpartition("/")[2]
        if _belongs_to(name) not in own:
            raise InputError(
                f"{file}: image {name} belongs to {_belongs_to(name)}, wanted {file.folder}; {file.way_out}"
            )


def _categories(file: InstancesFile, document: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    """Category id -> column, and the class names [k]."""
    column_of: dict[str, int] = {}
    names: list[str] = []
    for number, row in enumerate(_rows(file, document, "categories")):
        where = f"{file}: entry {number} of 'categories'"
        key = _key(where, row, "id")
        _require_field(where, row, "name")
        name = fields.as_class_name(row["name"], where)
        if key in column_of or name in names:
            raise InputError(f"{where}: the id {key} or the name {name!r} occurs twice; {file.way_out}")
        column_of[key] = len(names)
        names.append(name)
    return column_of, tuple(names)


def _instances(
    file: InstancesFile, document: Any, images: dict[str, Image], column_of: dict[str, int]
) -> Instances:
    instances = Instances([], [], [], boxes.LeftOut())
    for number, row in enumerate(_rows(file, document, "annotations")):
        where = f"{file}: annotation {number}"
        category, image = _key(where, row, "category_id"), _key(where, row, "image_id")
        if category not in column_of:
            raise InputError(f"{where} has the unknown category id {row['category_id']!r}; {file.way_out}")
        if image not in images:
            raise InputError(f"{where} has the unknown image id {row['image_id']!r}; {file.way_out}")
        # Tools write an empty box if an annotation describes the whole image.
        box = row.get("bbox") or None
        reason = "" if box is None else boxes.reason_against(box, images[image].size)
        if reason:
            instances.left_out.add(f"{where} (id {fields.shown(row.get('id'))})", reason)
        instances.columns.append(column_of[category])
        instances.owners.append(image)
        instances.boxes.append(None if reason else box)
    return instances


def _paths(root: Path, file: InstancesFile, wanted: list[str], year: str) -> list[str]:
    """Paths of the images relative to the root, spelled as on disk."""
    if year == YEAR and not (root / file.folder).is_dir():
        by_id = _pictures_of_2017(root, file, wanted)
        if by_id is not None:
            return by_id
    return paths(root, file, wanted)


def _pictures_of_2017(root: Path, file: InstancesFile, wanted: list[str]) -> list[str] | None:
    """Paths of images of 2014 in the folders of 2017, by id; None without these folders."""
    folders = [folder for folder in ("train2017", "val2017") if (root / folder).is_dir()]
    if not folders:
        return None
    names = [re.sub(r"^COCO_[a-z]+\d{4}_", "", each.rpartition("/")[2]) for each in wanted]
    on_disk = files.find_files(root, (f"{folder}/{name}" for name in names for folder in folders))
    place_of = {path.rpartition("/")[2]: path for path in on_disk.values()}
    files.require_files(
        names,
        place_of,
        root,
        f"get train2017.zip and val2017.zip, both, or {file.way_out.removeprefix('get ')}",
    )
    return [place_of[name] for name in names]


def paths(root: Path, file: InstancesFile, wanted: list[str]) -> list[str]:
    """Paths of the images of a file relative to the root, spelled as on disk.

    Raises:
        InputError: images are missing.
    """
    on_disk = files.find_files(root, wanted)
    if not on_disk:
        present = files.names_in(root / file.folder, file.way_out)
        if present:
            first = min(present)
            belongs = f" (of {_belongs_to(first)})" if _belongs_to(first) else ""
            raise InputError(
                f"{root / file.folder} contains none of the images, but {first}{belongs}; "
                f"wanted {wanted[0].removeprefix(f'{file.folder}/')}; {file.way_out}"
            )
    files.require_files(wanted, on_disk, root, file.way_out)
    return [on_disk[each] for each in wanted]
