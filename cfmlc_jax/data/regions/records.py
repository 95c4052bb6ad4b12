"""Regions that a detector stored: their features, boxes and labels, in a folder of shards that is larger than memory.

A folder has

- `regions.json` (`Writer` writes it last): the format's version, the shape of a region's features, their type, the number
  of cascade stages, the categories, whether there are labels, and for each shard its numbers of images and regions;
- for each shard `shard-00000.images.npy`: int64 [n, 2], id and number of regions of each image;
- `shard-00000.features.npy`: float16 or float32 [r, s, …], the features of each region in each of s stages: [d], or maps
  [h, w, c];
- `shard-00000.boxes.npy`: float32 [r, 4], left, top, right, bottom in pixels of the image as annotated: where a
  detection in this region is, after the detector's regression;
- `shard-00000.labels.npy`: int32 [r, s], the class that the detector assigned to each region in each stage: a position in
  the categories; k is the background, −1 a region that is neither. Training needs them, evaluation does not.

The regions of an image are consecutive. Arrays are mapped into memory, so that opening a folder reads no features. In a
bucket each image's part of an array is a request, when it is asked for.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax import files, installed
from cfmlc_jax.buckets import Address
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.data.sources import fields
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics.detection import FREQUENCIES

INDEX = "regions.json"
FORMAT = 1
DTYPES = ("float16", "float32")
_WAY_OUT = f"write the records again ({installed.document('long_tails.md')}, LVIS)"


@dataclass(frozen=True)
class Regions:
    """The r regions of an image.

    features: float16 or float32 [r, s, …], s stages.
    boxes: float32 [r, 4].
    labels: int32 [r, s]; None if the records have none.
    """

    features: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray | None


class Writer:
    """Writes the regions of images, shard by shard; `close` completes the folder.

    Args:
        folder: created if missing; it must not have records.
        shape: of a region's features in a stage, (d,) or (h, w, c).
        categories: the k classes, in ascending order of their ids.
        stages: s.
        labelled: whether regions have labels.
        dtype: of the stored features, one of `DTYPES`.
        shard_regions: a shard is written when it has so many regions.
        origin: JSON values about the detector, for whoever reads the index.

    Raises:
        InputError: the folder has records, or cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shape: Sequence[int],
        categories: Sequence[Category],
        stages: int = 1,
        labelled: bool = True,
        dtype: str = "float16",
        shard_regions: int = 200_000,
        **origin: Any,
    ):
        if (folder / INDEX).exists():
            raise InputError(f"{folder} has records already; give another folder, or remove it")
        files.create_folder(folder, "folder")
        self._folder, self._dtype = folder, np.dtype(dtype)
        self._shape, self._stages, self._labelled = tuple(shape), stages, labelled
        self._categories, self._origin = tuple(categories), origin
        self._most = shard_regions
        self._shards: list[dict[str, int]] = []
        self._images: list[tuple[int, int]] = []
        self._parts: list[Regions] = []
        self._count = 0

    def add(self, image_id: int, features: Any, boxes: Any, labels: Any = None) -> None:
        """Add the regions of an image, of which there may be none.

        Args:
            image_id: as in the annotations.
            features: [r, s, …].
            boxes: [r, 4].
            labels: [r, s]; None if regions have no labels.

        Raises:
            InputError: an array has another shape, or a number that is not finite or no class.
            WriteError: a shard cannot be written.
        """
        where = f"image {image_id}"
        features, boxes = np.asarray(features, self._dtype), np.asarray(boxes, np.float32)
        labels = None if labels is None else np.asarray(labels, np.int32)
        wanted = {"features": (len(boxes), self._stages, *self._shape), "boxes": (len(boxes), 4)}
        given = {"features": features, "boxes": boxes}
        if (labels is not None) != self._labelled:
            raise InputError(
                f"{where}: labels are {'missing' if self._labelled else 'given'}; see `labelled`"
            )
        if labels is not None:
            wanted["labels"], given["labels"] = (len(boxes), self._stages), labels
        for name, array in given.items():
            if array.shape != wanted[name]:
                raise InputError(
                    f"{where}: {name} have shape {list(array.shape)}, wanted {list(wanted[name])}; {_WAY_OUT}"
                )
            if not np.isfinite(array).all():
                raise InputError(
                    f"{where}: {name} are not finite in {self._dtype}; write float32, or scale the features"
                )
        _require_labels(where, labels, len(self._categories))
        self._images.append((image_id, len(boxes)))
        self._parts.append(Regions(features, boxes, labels))
        self._count += len(boxes)
        if self._count >= self._most:
            self._write_shard()

    def close(self) -> None:
        """Write the last shard, and the index.

        Raises:
            InputError: no image was added.
            WriteError: a file cannot be written.
        """
        if self._images:
            self._write_shard()
        if not self._shards:
            raise InputError(f"{self._folder}: no image was added; add the regions of at least one")
        index = {
            "format": FORMAT,
            "shape": list(self._shape),
            "dtype": self._dtype.name,
            "stages": self._stages,
            "labelled": self._labelled,
            "categories": [[each.id, each.name, each.frequency] for each in self._categories],
            "shards": self._shards,
        }
        files.write_text(self._folder / INDEX, json.dumps(index | {"origin": self._origin}, indent=1) + "\n")

    def _write_shard(self):
        name = len(self._shards)
        arrays = {
            "images": np.array(self._images, np.int64),
            "features": np.concatenate([part.features for part in self._parts]),
            "boxes": np.concatenate([part.boxes for part in self._parts]),
        }
        if self._labelled:
            arrays["labels"] = np.concatenate([part.labels for part in self._parts])
        for kind, array in arrays.items():
            files.write_npy(_path(self._folder, name, kind), array)
        self._shards.append({"images": len(self._images), "regions": self._count})
        self._images, self._parts, self._count = [], [], 0


class RegionRecords:
    """The records of a folder, by image.

    Args:
        folder: of the records, which may be in a bucket.

    Attributes:
        shape: of a region's features in a stage.
        stages: s.
        categories: the k classes.
        labelled: whether regions have labels.
        image_ids: int64 [n].
        counts: int64 [n], regions of each image.
        content: digest of the index and of the images, the same wherever the folder is.

    Raises:
        InputError: the folder has no index, or a file is missing, damaged or does not fit the index.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        index, text = _read_index(folder)
        self.shape, self.stages = tuple(index["shape"]), index["stages"]
        self.categories, self.labelled = index["categories"], index["labelled"]
        self._dtype = np.dtype(index["dtype"])
        self._shards = [self._open(i, shard) for i, shard in enumerate(index["shards"])]
        tables = [shard["images"] for shard in self._shards]
        self.image_ids = np.concatenate([table[:, 0] for table in tables])
        self.counts = np.concatenate([table[:, 1] for table in tables])
        values, times = np.unique(self.image_ids, return_counts=True)
        if (times > 1).any():
            raise InputError(f"{folder} has image {values[times > 1][0]} twice; {_WAY_OUT}")
        self._starts = np.concatenate([np.cumsum(table[:, 1]) - table[:, 1] for table in tables])
        self._owner = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        digest = hashlib.blake2b(text, digest_size=8)
        digest.update(np.stack([self.image_ids, self.counts]).tobytes())
        self.content = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"RegionRecords(images={len(self)}, content={self.content})"

    def __getitem__(self, image: int) -> Regions:
        shard = self._shards[self._owner[image]]
        rows = slice(self._starts[image], self._starts[image] + self.counts[image])
        labels = shard["labels"][rows] if self.labelled else None
        return Regions(shard["features"][rows], shard["boxes"][rows], labels)

    def class_counts(self) -> np.ndarray:
        """Regions of each class and of the background, over all stages: int64 [k + 1]. Reads all labels."""
        counts = np.zeros(len(self.categories) + 1, np.int64)
        for i, shard in enumerate(self._shards):
            labels = np.asarray(shard["labels"][:])
            _require_labels(str(_path(self._folder, i, "labels")), labels, len(self.categories))
            counts += np.bincount(labels[labels >= 0], minlength=len(counts))
        return counts

    def _open(self, number, shard):
        """The mapped arrays of a shard by name, checked against the index."""
        regions = shard["regions"]
        wanted = {
            "images": ((shard["images"], 2), np.dtype(np.int64)),
            "features": ((regions, self.stages, *self.shape), self._dtype),
            "boxes": ((regions, 4), np.dtype(np.float32)),
        }
        if self.labelled:
            wanted["labels"] = ((regions, self.stages), np.dtype(np.int32))
        arrays = {}
        for kind, (shape, dtype) in wanted.items():
            path = _path(self._folder, number, kind)
            try:
                # An empty array cannot be mapped. What is mapped must be as large as the file declares.
                array: Any
                if kind == "images" or np.prod(shape) == 0:
                    array = files.read_npy(path)
                elif isinstance(path, Address):
                    array = files.ArrayInBucket(path)
                else:
                    array = files.map_npy(path)
            except (OSError, ValueError, EOFError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{path} cannot be read ({reason}); {_WAY_OUT}") from error
            if array.shape != shape or array.dtype != dtype:
                raise InputError(
                    f"{path} has {array.dtype} {list(array.shape)}, but {INDEX} says {dtype} {list(shape)}; {_WAY_OUT}"
                )
            arrays[kind] = array
        counts = arrays["images"][:, 1]
        if (counts < 0).any() or counts.sum() != regions:
            raise InputError(
                f"{_path(self._folder, number, 'images')} has {counts.sum()} regions, but {INDEX} says {regions}; {_WAY_OUT}"
            )
        return arrays


def _read_index(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The checked fields of an index, and its text."""
    path = folder / INDEX
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder} is not a folder of region features: {INDEX}, which is written last, cannot be read "
            f"({error.strerror}); give another folder, or {_WAY_OUT}"
        ) from error
    try:
        index = json.loads(text)
        if index["format"] != FORMAT:
            raise ValueError(f"format {fields.shown(index['format'])}, wanted {FORMAT}")
        categories = [Category(*each) for each in index["categories"]]
        ids = [each.id for each in categories]
        if not all(type(number) is int for number in ids):
            raise ValueError("the id of a category is not a whole number")
        sizes = [*index["shape"], index["stages"], *(shard["images"] for shard in index["shards"])]
        if not all(type(size) is int and size > 0 for size in sizes) or not index["shards"]:
            raise ValueError("a size is not a whole number above 0")
        if not all(type(shard["regions"]) is int and shard["regions"] >= 0 for shard in index["shards"]):
            raise ValueError("a number of regions is not a whole number")
        if len(index["shape"]) not in (1, 3) or index["dtype"] not in DTYPES:
            raise ValueError(f"shape {index['shape']} or dtype {fields.shown(index['dtype'])}")
        if not ids or ids != sorted(set(ids)):
            raise ValueError("the ids of categories do not ascend")
        if any(each.frequency not in FREQUENCIES for each in categories):
            raise ValueError("a frequency is not r, c or f")
        fields.class_names([each.name for each in categories], str(path))
        labelled = bool(index["labelled"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({reason}); {_WAY_OUT}") from error
    return index | {"categories": tuple(categories), "labelled": labelled}, text


def _require_labels(where, labels, num_classes):
    if labels is not None and labels.size and not (labels.min() >= -1 and labels.max() <= num_classes):
        raise InputError(
            f"{where}: labels from {labels.min()} to {labels.max()}; wanted 0 to {num_classes - 1} for classes, "
            f"{num_classes} for the background, −1 for neither"
        )


def _path(folder, shard, kind):
    return folder / f"shard-{shard:05d}.{kind}.npy"
