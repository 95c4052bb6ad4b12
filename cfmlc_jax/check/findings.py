"""What a check finds in the tables of your own images: problems, classes, forms of the files."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.check.files import Content, read_all
from cfmlc_jax.data.sources import files, table
from cfmlc_jax.data.sources.listed import Row
from cfmlc_jax.errors import InputError

# Kinds of problems, the errors first: what they mean, and what to do.
ERRORS = {
    "table": "A table that cannot be read.",
    "label": "Labels that cannot be used: of an unknown class, contradicting each other, or none that is known.",
    "listed twice": "A file in two lines of a table. Give its labels in one line.",
    "missing": "Files that do not exist. Add them or remove the lines.",
    "broken": "Files that cannot be decoded. A run stops there, or skips them with data.on_error=skip.",
    "leak": "The same picture in two splits: its score is not that of an unseen image. Remove it from one.",
    "disagreement": "The same picture twice in a split with other labels. Decide which are right.",
    "no image": "Classes without a training image. They cannot be learnt; remove them or label images.",
}
WARNINGS = {
    "duplicate": "The same picture twice in a split, with the same labels. It counts twice.",
    "look-alike": "Pictures in two splits that look the same at 9 x 8 pixels, perhaps at another size or quality.",
    "rare": "Classes with few training images that have them, or few that are known to lack them.",
    "no test": "Classes without a validation image that has them. Their average precision is undefined.",
    "unknown": "Classes that are unknown in most training images.",
    "small": "Images that are smaller than the views of a classifier mostly are.",
    "slim": "Images much longer than wide. Squeezed to a square they are distorted.",
    "turned": "Images that their metadata turn. configs/own_images.py reads them upright; without data.exif they are read as stored.",
}
SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Options:
    """Limits of the warnings.

    unmentioned: as config.data.unmentioned.
    rare: fewer images of a class are few.
    smallest: shorter sides of fewer pixels are small.
    slim: greater ratios of the sides are slim.
    threads: that read files.
    """

    unmentioned: str = "absent"
    rare: int = 10
    smallest: int = 64
    slim: float = 4.0
    threads: int = 8


@dataclasses.dataclass(frozen=True)
class Problem:
    """A problem of one place in the data.

    kind: a key of `ERRORS` or `WARNINGS`.
    text: one line that names the place.
    files: the files that it concerns, relative to the folder.
    """

    kind: str
    text: str
    files: tuple[str, ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether it is an error."""
        return self.kind in ERRORS


@dataclasses.dataclass(frozen=True)
class ClassCounts:
    """Images of a class in each split: {"present", "absent", "unknown"} by split."""

    name: str
    splits: dict[str, dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that a check finds.

    folder: of the tables.
    images: lines of the tables by split.
    problems: in the order of the kinds.
    classes: in label order.
    modes: number of files by the mode of their pixels.
    sides: of the files that can be decoded: least, median and greatest width and height, pixels.
    """

    folder: str
    images: dict[str, int]
    problems: list[Problem]
    classes: list[ClassCounts]
    modes: dict[str, int]
    sides: dict[str, list[int]]

    @property
    def errors(self) -> list[Problem]:
        """The problems that are errors."""
        return [problem for problem in self.problems if problem.is_error]

    @property
    def warnings(self) -> list[Problem]:
        """The problems that are warnings."""
        return [problem for problem in self.problems if not problem.is_error]

    def to_json(self) -> dict[str, Any]:
        """JSON types, with the problems as "errors" and "warnings"."""
        fields = dataclasses.asdict(self)
        del fields["problems"]
        problems = {
            name: [dataclasses.asdict(problem) for problem in each]
            for name, each in (("errors", self.errors), ("warnings", self.warnings))
        }
        return problems | fields


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image of a split: its line, its path on disk, its labels (None: unusable), and what was read of the file."""

    split: str
    row: Row
    path: str
    labels: np.ndarray | None
    content: Content


def check(
    folder: Path, options: Options, progress: Callable[[int, int], None] = lambda done, all: None
) -> Findings:
    """The findings of the tables in a folder, `train.csv` and, if it exists, `val.csv`.

    Unlike a run, which ends at the first problem, it reads every line and every file.

    Args:
        folder: of the tables.
        options: limits of the warnings.
        progress: called with the number of files that were read, and of all.
    """
    problems: list[Problem] = []
    splits = [split for split in SPLITS if split == "train" or (folder / f"{split}.csv").exists()]
    tables = {split: _rows(folder / f"{split}.csv", problems) for split in splits}
    class_names, origin = _class_names(folder, problems)
    column_of = {name: column for column, name in enumerate(class_names)}
    present = [
        (split, row, path)
        for split, rows in tables.items()
        for row, path in _on_disk(folder, split, rows, problems)
    ]
    images = []
    contents = read_all((os.path.join(str(folder), path) for _, _, path in present), options.threads)
    for done, ((split, row, path), content) in enumerate(zip(present, contents, strict=True), 1):
        labels = _labels(folder / f"{split}.csv", row, column_of, origin, options, problems)
        images.append(_Image(split, row, path, labels, content))
        progress(done, len(present))
    problems += [Problem("broken", each.content.error, (each.path,)) for each in images if each.content.error]
    sound = [each for each in images if not each.content.error]
    problems += _duplicates(sound)
    problems += _forms(sound, options)
    classes = [_counts(k, name, images, splits) for k, name in enumerate(class_names)]
    problems += _class_problems(classes, splits, options)
    kinds = [*ERRORS, *WARNINGS]
    return Findings(
        folder=str(folder),
        images={split: len(rows) for split, rows in tables.items()},
        problems=sorted(problems, key=lambda problem: kinds.index(problem.kind)),
        classes=classes,
        modes=dict(collections.Counter(each.content.mode for each in sound).most_common()),
        sides=_sides(sound),
    )


def _rows(path: Path, problems: list[Problem]) -> list[Row]:
    try:
        rows = table.read_table(path)
    except InputError as error:
        problems.append(Problem("table", str(error)))
        return []
    if not rows:
        problems.append(Problem("table", f"{path}: no image in it; {table.WAY_OUT}"))
    return rows


def _class_names(folder: Path, problems: list[Problem]) -> tuple[tuple[str, ...], str]:
    try:
        return table.class_list(folder)
    except InputError as error:
        # If the table itself is unreadable, that has been said.
        if not any(problem.kind == "table" for problem in problems):
            problems.append(Problem("table", str(error)))
        return (), ""


def _on_disk(folder, split, rows: list[Row], problems: list[Problem]) -> Iterable[tuple[Row, str]]:
    """The rows whose file exists, each file once, with its path on disk."""
    on_disk = files.find_files(folder, (row.file for row in rows))
    lines: dict[str, int] = {}
    kept = []
    for row in rows:
        where = f"{split}.csv line {row.line}"
        first = lines.setdefault(row.file, row.line)
        if first != row.line:
            text = f"{where}: {row.written!r} is already in line {first}"
            problems.append(Problem("listed twice", text, (row.file,)))
        elif row.file not in on_disk:
            problems.append(Problem("missing", f"{where}: no image {row.written!r}", (row.file,)))
        else:
            kept.append((row, on_disk[row.file]))
    return kept


def _labels(path, row, column_of, origin, options: Options, problems: list[Problem]) -> np.ndarray | None:
    if not column_of:
        return None
    try:
        return table.row_labels(path, row, column_of, origin, options.unmentioned)
    except InputError as error:
        problems.append(Problem("label", str(error), (row.file,)))
        return None


def _duplicates(images: Sequence[_Image]) -> list[Problem]:
    """Pictures that occur more than once, in a split or in two."""
    problems = []
    for group in _groups(images, lambda image: image.content.pixels):
        names = tuple(f"{each.split}: {each.path}" for each in group)
        paths = tuple(each.path for each in group)
        copies = "copies" if len({each.content.bytes for each in group}) == 1 else "equal pixels"
        if len({each.split for each in group}) > 1:
            problems.append(Problem("leak", f"{' = '.join(names)} ({copies})", paths))
            continue
        agree = len({None if each.labels is None else each.labels.tobytes() for each in group}) == 1
        kind = "duplicate" if agree else "disagreement"
        problems.append(Problem(kind, f"{' = '.join(names)} ({copies})", paths))
    for group in _groups(images, lambda image: image.content.look):
        splits, pictures = {each.split for each in group}, {each.content.pixels for each in group}
        if len(splits) > 1 and len(pictures) > 1:
            text = " ~ ".join(f"{each.split}: {each.path}" for each in group)
            problems.append(Problem("look-alike", text, tuple(each.path for each in group)))
    return problems


def _groups(images, key) -> list[list[_Image]]:
    """The images of each key that several have; not those whose key is 0."""
    groups = collections.defaultdict(list)
    for image in images:
        groups[key(image)].append(image)
    return [group for value, group in groups.items() if value and len(group) > 1]


def _forms(images: Sequence[_Image], options: Options) -> list[Problem]:
    """Images of unusual sizes, and turned ones."""
    problems = []
    for image in images:
        content, place = image.content, f"{image.split}: {image.path}"
        shorter, longer = sorted((content.width, content.height))
        size = f"{content.width} x {content.height} pixels"
        if shorter < options.smallest:
            problems.append(Problem("small", f"{place}, {size}", (image.path,)))
        if longer > options.slim * shorter:
            problems.append(Problem("slim", f"{place}, {size}", (image.path,)))
        if content.turned:
            problems.append(Problem("turned", place, (image.path,)))
    return problems


def _counts(k: int, name: str, images: Sequence[_Image], splits) -> ClassCounts:
    counts = {}
    for split in splits:
        labels = [each.labels[k] for each in images if each.split == split and each.labels is not None]
        counts[split] = {
            word: int((np.array(labels, np.int8) == value).sum())
            for word, value in (("present", 1), ("absent", 0), ("unknown", -1))
        }
    return ClassCounts(name, counts)


def _class_problems(classes: Sequence[ClassCounts], splits, options: Options) -> list[Problem]:
    problems = []
    for each in classes:
        train = each.splits["train"]
        if not train["present"]:
            problems.append(Problem("no image", f"{each.name}: no training image has it"))
        elif min(train["present"], train["absent"]) < options.rare:
            text = f"{each.name}: {train['present']} training images have it, {train['absent']} are known to lack it"
            problems.append(Problem("rare", text))
        if train["unknown"] > train["present"] + train["absent"]:
            text = f"{each.name}: unknown in {train['unknown']} of {sum(train.values())} training images"
            problems.append(Problem("unknown", text))
        if "val" in splits and not each.splits["val"]["present"]:
            problems.append(Problem("no test", f"{each.name}: no image of val has it"))
    return problems


def _sides(images: Sequence[_Image]) -> dict[str, list[int]]:
    if not images:
        return {}
    sides = {
        "width": [each.content.width for each in images],
        "height": [each.content.height for each in images],
    }
    return {name: [min(each), int(np.median(each)), max(each)] for name, each in sides.items()}
