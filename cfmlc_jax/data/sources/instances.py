"""Your own images with an annotation file of COCO's form (instances.json) for each split, as many tools write it."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cfmlc_jax.data.sources import annotations, coco, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

WAY_OUT = "give the file by config.data.instances, its images in the folder that is named there"


class Instances(files.FileSource):
    """A split from an annotation file of COCO's form.

    Unlike the official sets, images without an annotation belong to the split: they have no class. Ids sort as
    strings, classes are in the order of the file's categories, and unusable boxes are left out and reported.

    Args:
        root: the folder to which the other paths are relative.
        split: "train" or "val", for messages and its `repr`.
        json: the annotation file.
        images: the folder of the images, to which `file_name` is relative; "": the root.
        listed: a text file that lists the images of the split, one id or file_name a line; "": all images of the file.
            So one annotation file can serve both splits.

    Raises:
        InputError: as `coco.read`; a listed image is not in the annotation file, or is listed twice (with the line).
    """

    def __init__(self, root: str | Path, split: str, *, json: str, images: str = "", listed: str = ""):
        files.require_split(split)
        root = path_of(root)
        file = coco.InstancesFile(root / json, images.rstrip("/"), WAY_OUT)
        chosen = root / listed if listed else None

        def choose(images: dict[str, coco.Image]):
            return images if chosen is None else _listed(chosen, images, file)

        paths = [file.path] if chosen is None else [file.path, chosen]
        # The entry has the images' paths, which begin with their folder.
        name = f"instances_{split}_{zlib.crc32(file.folder.encode()):08x}"
        kept = annotations.cached(name, paths, lambda: coco.read(file, choose=choose))
        super().__init__(
            root=root,
            split=split,
            paths=coco.paths(root, file, kept.files),
            ids=kept.ids,
            labels=kept.labels,
            class_names=kept.class_names,
            boxes=kept.boxes,
        )
        self._annotations = file

    def outlines(self, images: Iterable[int]) -> dict[tuple[int, int], list[Any]]:
        """What the annotation file says of the outlines of some images: see `coco.outlines`."""
        return coco.outlines(self._annotations, {self.ids[image]: image for image in images})


def _listed(path: Path, images: dict[str, coco.Image], file: coco.InstancesFile) -> dict[str, int]:
    """The ids of the listed images, and their lines."""
    id_of = {image.file: key for key, image in images.items()}
    lines: dict[str, int] = {}
    for number, text in enumerate(
        files.read_text(path, "list one image id or file_name a line").splitlines(), 1
    ):
        if not text.strip():
            continue
        where, written = f"{path} line {number}", text.strip()
        key = written if written in images else id_of.get(fields.relative_path(written, where, file.folder))
        if key is None:
            raise InputError(
                f"{where}: image {written!r} is not in {file}; write the id or the file_name of one of its images"
            )
        if lines.setdefault(key, number) != number:
            raise InputError(f"{where}: image {written!r} is already in line {lines[key]}; keep one of them")
    return lines
