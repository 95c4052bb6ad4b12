"""Generated counterfactual images with a label per mechanism: their files, written in shards and read by index.

A folder of generated records has

- `index.json` (`write_index`): class names, mechanisms, number of records in each shard, image size, and where the
  records come from;
- for each shard `records-00000-of-00010.array_record` (`write_shard`): each record is three little-endian int32, the
  labels of shape, texture and background, followed by the bytes of an encoded image;
- for each shard `records-00000-of-00010.npy`: the same labels, int32 [n, 3], so that a folder is opened without
  reading its images.
"""

import bisect
import hashlib
import io
import itertools
import json
import os
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
from cfmlc_jax.errors import InputError, RunError

INDEX = "index.json"
# Encodings of images, and Pillow's options for them.
ENCODINGS: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": 95, "subsampling": 0}}
_LABELS = np.dtype("<i4")
_HOW = "generate the records (python -m cfmlc_jax.cgn generate --checkpoint=RUN --out=FOLDER)"


def shard_name(shard: int, shards: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"records-{shard:05d}-of-{shards:05d}.array_record"


def is_shard(path: Path, count: int, class_names: Sequence[str]) -> bool:
    """Whether a shard and its labels are there, with so many records of these classes."""
    try:
        _read_labels(path, count, class_names)
        _open_shard(path, count)
    except InputError:
        return False
    return True


def write_shard(path: Path, images: Iterable[np.ndarray], mechanisms: Any, *, encoding: str = "png") -> None:
    """Write the records of one shard, and beside them their labels. A shard that exists is complete.

    Args:
        path: in the folder of the records, named by `shard_name`.
        images: n images uint8 [h, w, 3].
        mechanisms: labels of the mechanisms in the order of `MECHANISMS`, whole numbers [n, 3].
        encoding: a key of `ENCODINGS`.

    Raises:
        WriteError: the labels cannot be written.
        RunError: the records cannot be written.
    """
    labels = np.asarray(mechanisms, _LABELS)
    files.write_npy(path.with_suffix(".npy"), labels)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    folder: Path, *, class_names: Sequence[str], shards: Sequence[int], image_size: int, **origin: Any
) -> None:
    """Write the index of a folder, after all its shards: a folder with an index is complete.

    Args:
        folder: of the shards.
        class_names: in label order, of all mechanisms.
        shards: number of records in each shard.
        image_size: side of the images, pixels.
        origin: where the records come from, such as checkpoint and seed, in JSON types.

    Raises:
        WriteError: the file cannot be written.
    """
    index = {
        "class_names": list(class_names),
        "mechanisms": list(MECHANISMS),
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


class Counterfactuals:
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
        index = _read_index(folder)
        self.class_names, self.image_size = index["class_names"], index["image_size"]
        self.data = index["data"]
        paths = [folder / shard_name(i, len(index["shards"])) for i in range(len(index["shards"]))]
        shards = list(zip(paths, index["shards"]))
        self.mechanisms = np.concatenate(
            [_read_labels(path, count, self.class_names) for path, count in shards]
        )
        self._names = [path.name for path in paths]
        self._shards = [_open_shard(path, count) for path, count in shards]
        self._starts = list(itertools.accumulate(index["shards"], initial=0))
        shape = self.mechanisms[:, MECHANISMS.index(SHAPE)]
        self.labels = np.zeros((len(shape), len(self.class_names)), np.uint8)
        self.labels[np.arange(len(shape)), shape] = 1
        # Of the index, which names checkpoint and seed, and of all labels: two folders of the same content have the
        # same ids wherever they are, and two of different content have different ones.
        content = hashlib.blake2b(index["content"] + self.mechanisms.astype(_LABELS).tobytes(), digest_size=6)
        self._content = content.hexdigest()
        self.ids = [f"{self._content}-{i:07d}" for i in range(len(shape))]

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
        size = len(MECHANISMS) * _LABELS.itemsize
        if data[:size] != self.mechanisms[index].astype(_LABELS).tobytes():
            raise InputError(
                f"{where} has other labels than {Path(self._names[shard]).stem}.npy; remove both, and {_HOW} "
                "again"
            )
        return Record(image=data[size:], labels=self.labels[index].copy(), id=self.ids[index], where=where)

    def __repr__(self) -> str:
        return f"Counterfactuals(records={len(self)}, content={self._content})"


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
        mechanisms = index["mechanisms"]
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
        "content": content,
    }


def _are_counts(values):
    return isinstance(values, list) and all(type(value) is int and value > 0 for value in values)


def _read_labels(path, count, class_names):
    """The labels of a shard: int32 [count, 3]."""
    labels_path = path.with_suffix(".npy")
    try:
        labels = np.load(labels_path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{labels_path} cannot be read ({_one_line(error)}); {_HOW} again") from error
    if labels.shape != (count, len(MECHANISMS)) or labels.dtype != _LABELS:
        raise InputError(
            f"{labels_path} has labels {labels.dtype} {list(labels.shape)}, wanted int32 [{count}, {len(MECHANISMS)}] "
            f"by {INDEX}; {_HOW} again"
        )
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise InputError(
            f"{labels_path} has labels from {labels.min()} to {labels.max()} for {len(class_names)} classes in {INDEX}; "
            f"{_HOW} again"
        )
    return labels.astype(np.int32)


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
