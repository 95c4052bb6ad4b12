"""Generated counterfactual images: their files, written in shards and read by index.

Records are single-label images with a label per mechanism (`Counterfactuals`), or multi-label scenes with boxes
(`CounterfactualScenes`). A folder of generated records has

- `index.json` (`write_index`): class names, mechanisms or the task, number of records in each shard, image size, and
  where the records come from;
- for each shard `records-00000-of-00010.array_record` (`write_shard`): each record is a row of little-endian int32,
  followed by the bytes of an encoded image. The row has the labels of shape, texture and background; of a scene, 0 or 1
  for each of the k classes;
- for each shard `records-00000-of-00010.npy`: the same rows, int32 [n, 3] or [n, k], so that a folder is opened without
  reading its images;
- for each shard of scenes `records-00000-of-00010.boxes.npy`: int32 [m, 6], of each object the record in the shard, the
  class, and left, top, right, bottom.
"""

import bisect
import hashlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from cfmlc_jax import files
from cfmlc_jax.causal.mechanisms import MECHANISMS, SHAPE
from cfmlc_jax.data.sources import Record, fields
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.errors import InputError, RunError

INDEX = "index.json"
# Encodings of images, and Pillow's options for them.
ENCODINGS: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}
SINGLE_LABEL, MULTI_LABEL = "single_label", "multi_label"
_LABELS = np.dtype("<i4")
# Columns of a shard's boxes: record, class, left, top, right, bottom.
_BOX_COLUMNS = 6
_HOW = "generate the records (python -m cfmlc_jax.cgn generate --checkpoint=RUN --out=FOLDER)"


def shard_name(shard: int, shards: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"records-{shard:05d}-of-{shards:05d}.array_record"


def is_shard(path: Path, count: int, class_names: Sequence[str], task: str) -> bool:
    """Whether a shard, its labels and of scenes its boxes are there, with so many records of these classes."""
    try:
        _read_labels(path, count, len(class_names), task)
        _open_shard(path, count)
        if task == MULTI_LABEL:
            _read_boxes(path, count)
    except InputError:
        return False
    return True


def write_shard(
    path: Path, images: Iterable[np.ndarray], labels: Any, *, boxes: Any = None, encoding: str = "png"
) -> None:
    """Write the records of one shard, and beside them their labels. A shard that exists is complete.

    Args:
        path: in the folder of the records, named by `shard_name`.
        images: n images uint8 [h, w, 3].
        labels: labels of the mechanisms in the order of `MECHANISMS`, whole numbers [n, 3]; of scenes 0 or 1 [n, k].
        boxes: of scenes, whole numbers [m, 6]: record in the shard, class, left, top, right, bottom.
        encoding: a key of `ENCODINGS`.

    Raises:
        WriteError: the labels cannot be written.
        RunError: the records cannot be written.
    """
    labels = np.asarray(labels, _LABELS)
    files.write_npy(path.with_suffix(".npy"), labels)
    if boxes is not None:
        files.write_npy(_boxes_path(path), np.asarray(boxes, _LABELS).reshape(-1, _BOX_COLUMNS))
    temporary = files.temporary(path)
    try:
        # Encoded images do not get smaller by another compression.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        for image, row in zip(images, labels, strict=True):
            writer.write(row.tobytes() + encoded(image, encoding))
        writer.close()
        temporary.replace(path)
    except (RuntimeError, OSError) as error:  # of the library, of the file system
        raise RunError(
            f"{path} cannot be written ({_one_line(error)}); free space, or give another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_index(
    folder: Path,
    *,
    class_names: Sequence[str],
    shards: Sequence[int],
    image_size: int,
    task: str = SINGLE_LABEL,
    **origin: Any,
) -> None:
    """Write the index of a folder, after all its shards: a folder with an index is complete.

    Args:
        folder: of the shards.
        class_names: in label order, of all mechanisms.
        shards: number of records in each shard.
        image_size: side of the images, pixels.
        task: "single_label", with mechanisms; or "multi_label", scenes.
        origin: where the records come from, such as checkpoint and seed, in JSON types.

    Raises:
        WriteError: the file cannot be written.
    """
    index = {
        "class_names": list(class_names),
        **({"mechanisms": list(MECHANISMS)} if task == SINGLE_LABEL else {"task": task}),
        "records": int(sum(shards)),
        "shards": [int(count) for count in shards],
        "image_size": int(image_size),
    }
    files.write_text(folder / INDEX, json.dumps(index | origin, indent=1) + "\n")


def encoded(image: np.ndarray, encoding: str = "png") -> bytes:
    """The bytes of an image file of pixels uint8 [h, w, 3], in an encoding of `ENCODINGS`."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, encoding.upper(), **ENCODINGS[encoding])
    return file.getvalue()


class _Records:
    """The records of a folder by index.

    Args:
        folder: of the records.
        task: the task that its index must have.

    Attributes:
        image_size: side of the images, pixels.
        data: name of the data set that the generator learned from; empty if the index does not say.
    """

    labels: np.ndarray

    def __init__(self, folder: Path, task: str):
        index = _read_index(folder)
        if index["task"] != task:
            raise InputError(
                f"{folder} has {index['task']} records, wanted {task}; {_HOW} from a network of such data"
            )
        self.class_names, self.image_size = index["class_names"], index["image_size"]
        self.data = index["data"]
        self._paths = [folder / shard_name(i, len(index["shards"])) for i in range(len(index["shards"]))]
        shards = list(zip(self._paths, index["shards"]))
        self._rows = np.concatenate(
            [_read_labels(path, count, len(self.class_names), task) for path, count in shards]
        )
        self._names = [path.name for path in self._paths]
        self._shards = [_open_shard(path, count) for path, count in shards]
        self._starts = list(itertools.accumulate(index["shards"], initial=0))
        # Of the index, which names checkpoint and seed, and of all labels: two folders of the same content have the
        # same ids wherever they are, and two of different content have different ones.
        content = hashlib.blake2b(index["content"] + self._rows.astype(_LABELS).tobytes(), digest_size=6)
        self._content = content.hexdigest()
        self.ids = [f"{self._content}-{i:07d}" for i in range(len(self._rows))]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        shard = bisect.bisect_right(self._starts, index) - 1
        place = index - self._starts[shard]
        where = f"{self._names[shard]} record {place}"
        try:
            data = self._shards[shard][place]
        except RuntimeError as error:
            raise InputError(
                f"{where} is damaged ({_one_line(error)}); remove the file, and {_HOW} again"
            ) from error
        row = self._rows[index].astype(_LABELS).tobytes()
        size = len(row)
        if data[:size] != row:
            raise InputError(
                f"{where} has other labels than {Path(self._names[shard]).stem}.npy; remove both, and {_HOW} "
                "again"
            )
        return Record(image=data[size:], labels=self.labels[index].copy(), id=self.ids[index], where=where)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(records={len(self)}, content={self._content})"


class Counterfactuals(_Records):
    """The generated records of a folder, single-label: their class is that of the shape.

    Args:
        folder: of the records.

    Attributes:
        mechanisms: labels int32 [n, 3] in the order of `MECHANISMS`.
        image_size: side of the images, pixels.
        data: name of the data set that the generator learned from; empty if the index does not say.

    Raises:
        InputError: the folder has no index; the index is damaged or of other mechanisms; a shard is missing,
            damaged, or has another number of records.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, SINGLE_LABEL)
        self.mechanisms = self._rows
        shape = self.mechanisms[:, MECHANISMS.index(SHAPE)]
        self.labels = np.zeros((len(shape), len(self.class_names)), np.uint8)
        self.labels[np.arange(len(shape)), shape] = 1


class CounterfactualScenes(_Records):
    """The generated scenes of a folder, multi-label, with boxes.

    Args:
        folder: of the records.

    Attributes:
        image_size: side of the images, pixels.

    Raises:
        InputError: as for `Counterfactuals`.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, MULTI_LABEL)
        self.labels = self._rows.astype(np.uint8)

    def boxes(self) -> Boxes:
        """The boxes of all objects, scene by scene, in the order in which they were painted.

        Raises:
            InputError: a file of boxes is missing or damaged.
        """
        counts = np.diff(self._starts)
        shards = [_read_boxes(path, count) for path, count in zip(self._paths, counts)]
        columns = np.concatenate(shards)
        return Boxes(
            corners=columns[:, 2:].astype(np.float32),
            classes=columns[:, 1],
            images=columns[:, 0] + np.repeat(self._starts[:-1], [len(rows) for rows in shards]),
            sizes=np.full((len(self), 2), self.image_size, np.int64),
        )


def open_records(folder: Path) -> Counterfactuals | CounterfactualScenes:
    """The generated records of a folder, of whichever task.

    Raises:
        InputError: as for `Counterfactuals`.
    """
    task = _read_index(folder)["task"]
    return Counterfactuals(folder) if task == SINGLE_LABEL else CounterfactualScenes(folder)


def _read_index(folder):
    """The checked fields of an index, and its bytes as "content"."""
    path = folder / INDEX
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder} is not a folder of generated records: {INDEX}, which is written last, cannot be read "
            f"({error.strerror}); give another folder, or {_HOW} to the end"
        ) from error
    try:
        index = json.loads(content)
        names, shards, size = index["class_names"], index["shards"], index["image_size"]
        task = index.get("task", SINGLE_LABEL)
        mechanisms = index["mechanisms"] if task == SINGLE_LABEL else list(MECHANISMS)
        if task not in (SINGLE_LABEL, MULTI_LABEL):
            raise ValueError(f"task {fields.shown(task)}")
        if not (_are_counts(shards) and _are_counts([size]) and isinstance(names, list) and shards):
            raise ValueError("a field has a wrong value")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({_one_line(error)}); restore it, or {_HOW} again") from error
    if mechanisms != list(MECHANISMS):
        raise InputError(
            f"{path}: mechanisms {fields.shown(mechanisms)}, wanted {', '.join(MECHANISMS)}; {_HOW} from a checkpoint "
            "of these mechanisms"
        )
    return {
        "class_names": fields.class_names(names, str(path)),
        "shards": shards,
        "image_size": size,
        "data": str(index.get("data", "")),
        "task": task,
        "content": content,
    }


def _are_counts(values):
    return isinstance(values, list) and all(type(value) is int and value > 0 for value in values)


def _read_labels(path, count, num_classes, task):
    """The rows of a shard: int32 [count, 3] of mechanisms, or of scenes [count, k], 0 or 1."""
    labels_path = path.with_suffix(".npy")
    labels = _read_npy(labels_path)
    width = len(MECHANISMS) if task == SINGLE_LABEL else num_classes
    if labels.shape != (count, width) or labels.dtype != _LABELS:
        raise InputError(
            f"{labels_path} has labels {labels.dtype} {list(labels.shape)}, wanted int32 [{count}, {width}] "
            f"by {INDEX}; {_HOW} again"
        )
    if labels.min() < 0 or labels.max() >= (num_classes if task == SINGLE_LABEL else 2):
        wanted = (
            f"for {num_classes} classes in {INDEX}" if task == SINGLE_LABEL else "where scenes have 0 and 1"
        )
        raise InputError(
            f"{labels_path} has labels from {labels.min()} to {labels.max()} {wanted}; {_HOW} again"
        )
    return labels.astype(np.int32)


def _read_boxes(path, count):
    """The boxes of a shard of scenes: int32 [m, 6], its records ascending."""
    boxes = _read_npy(_boxes_path(path))
    if boxes.ndim != 2 or boxes.shape[1] != _BOX_COLUMNS or boxes.dtype != _LABELS:
        raise InputError(
            f"{_boxes_path(path)} has boxes {boxes.dtype} {list(boxes.shape)}, wanted int32 [m, {_BOX_COLUMNS}]; "
            f"{_HOW} again"
        )
    records = boxes[:, 0]
    if len(records) and (records.min() < 0 or records.max() >= count or (np.diff(records) < 0).any()):
        raise InputError(
            f"{_boxes_path(path)} has boxes of other records than 0 to {count - 1} in order; {_HOW} again"
        )
    return boxes.astype(np.int32)


def _read_npy(path):
    try:
        return files.read_npy(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({_one_line(error)}); {_HOW} again") from error


def _boxes_path(path):
    return path.with_suffix(".boxes.npy")


def _open_shard(path, count):
    try:
        shard = ArrayRecordDataSource(str(path))
    except RuntimeError as error:
        reason = f"damaged ({_one_line(error)})" if path.exists() else "missing"
        raise InputError(f"{path} is {reason}; {_HOW} again") from error
    if len(shard) != count:
        raise InputError(f"{path} has {len(shard)} records, but {INDEX} says {count}; {_HOW} again")
    return shard


def _one_line(error):
    return " ".join(str(error).split())
