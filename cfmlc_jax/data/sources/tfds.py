"""Any multi-label data set of TensorFlow Datasets, read without TensorFlow."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cfmlc_jax.data.sources import Record, fields, files
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of


class Tfds:
    """A `Source` for a split of a data set that TFDS prepared in a random-access format.

    Images are the bytes of their files, so that all sources are decoded in the same way. The labels of
    the whole split are read once, at construction, which reads every record. Images without a class are
    kept. There are no boxes.

    A key is the name of a feature, or names joined by "/" for a nested feature, such as
    "objects/label". VOC's published protocol excludes difficult instances:
    `labels_key="labels_no_difficult"`.

    Args:
        root: the TFDS data directory.
        split: "train" or "val".
        name: the data set, with config and version as TFDS writes them, for example "voc/2007".
        image_key: key of an image feature.
        labels_key: key of a class label, or of a sequence of class labels.
        id_key: key of a feature of text or whole numbers that is unique in the data set; without it an id is
            the TFDS split and the record's number.
        train_split: the TFDS split for "train", for example "train+validation" or "train[:80%]".
        val_split: the TFDS split for "val".

    Raises:
        InputError: TFDS is not installed, or has no such data set, split or feature; the data set
            is not prepared, or is in a sequential format; a record without label; an id that is invalid or
            not unique.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        name: str,
        image_key: str = "image",
        labels_key: str = "labels",
        id_key: str | None = None,
        train_split: str = "train",
        val_split: str = "validation",
    ):
        files.require_split(split)
        tfds = _import_tfds()
        builder = _builder(tfds, path_of(root), name)
        features = builder.info.features
        _require_image(tfds, _feature(name, features, image_key), name, image_key)

        self._name = name
        self._split = train_split if split == "train" else val_split
        self._image_key = image_key
        self._labels_key = labels_key
        self._has_ids = id_key is not None
        self._records = _records(tfds, builder, name, self._split, image_key)
        self.class_names = _class_names(tfds, _feature(name, features, labels_key), name, labels_key)
        # Name of a file, number of records skipped at its beginning, number of records read.
        self._shards = [
            (os.path.basename(part.filename), part.skip, part.take)
            for part in builder.info.splits[self._split].file_instructions
        ]
        if id_key is not None:
            _feature(name, features, id_key)
        self.labels, self.ids = self._read_labels(id_key)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        image = _value(self._records[index], self._image_key)
        where = f"{self._name} {self._split} record {index}"
        return Record(image=image, labels=self.labels[index].copy(), id=self.ids[index], where=where)

    def __repr__(self) -> str:
        return (
            f"Tfds(name={self._name!r}, split={self._split!r}, image_key={self._image_key!r}, "
            f"labels_key={self._labels_key!r}, images={len(self)}, classes={len(self.class_names)}, "
            f"content={files.fingerprint(self.class_names, self.ids, self.labels)})"
        )

    def pictures(self) -> list[str]:
        """A name of each image that is the same in all splits: its id if `id_key` is set, else its place in a file."""
        if self._has_ids:
            return self.ids
        return [f"{name}/{skip + i}" for name, skip, take in self._shards for i in range(take)]

    def _read_labels(self, id_key: str | None) -> tuple[np.ndarray, list[str]]:
        labels = np.zeros((len(self._records), len(self.class_names)), np.uint8)
        ids: dict[str, int] = {}
        for index, record in enumerate(self._records):
            where = f"{self._name} {self._split} record {index}"
            labels[index, _classes(_value(record, self._labels_key), where, len(self.class_names))] = 1
            key = f"{self._split}/{index}" if id_key is None else _key(_value(record, id_key), where, id_key)
            first = ids.setdefault(key, index)
            if first != index:
                raise InputError(
                    f"{where} has the same {id_key} {key!r} as record {first}; set id_key to a unique feature"
                )
        return labels, list(ids)


def _classes(value: Any, where: str, num_classes: int) -> np.ndarray:
    """Classes of a record, int64 [number of labels]."""
    try:
        present = np.atleast_1d(np.asarray(value, np.int64))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{where}: the labels {fields.shown(value)} are not class numbers; set labels_key to the labels' feature"
        ) from error
    if np.any((present < 0) | (present >= num_classes)):
        raise InputError(
            f"{where}: label {present.min()} is none of the {num_classes} classes; choose a split that has labels"
        )
    return present.reshape(-1)


def _key(value: Any, where: str, id_key: str) -> str:
    """A record's id, as text."""
    try:
        plain = value.item() if isinstance(value, np.generic | np.ndarray) else value
        key = fields.as_key(plain.decode() if isinstance(plain, bytes) else plain)
    except ValueError:  # several values, or bytes that are not UTF-8
        key = None
    if key is None:
        raise InputError(
            f"{where}: the {id_key} {fields.shown(value)} is no id; set id_key to a feature of text or whole numbers"
        )
    return key


def _import_tfds() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"TensorFlow Datasets cannot be imported ({error}); pip install 'cfmlc_jax[tfds]'"
        ) from error
    return tensorflow_datasets


def _first_line(error: Exception) -> str:
    # The lines after the first list all data sets of TFDS.
    return str(error).strip().partition("\n")[0].rstrip(".")


def _builder(tfds: Any, root: Path, name: str) -> Any:
    prepare = f"prepare it: tfds build {name} --data_dir={root} --file_format=array_record"
    _require_known_classes(root / re.split("[/:]", name)[0])
    try:
        builder = tfds.builder(name, data_dir=root, try_gcs=False)
    except ValueError as error:
        raise InputError(f"TFDS cannot open {name!r} in {root} ({_first_line(error)}); {prepare}") from error
    if not builder.data_path.exists():
        raise InputError(f"{name} is not in {root}; {prepare}")
    # Built from its files alone, so that worker processes need not know the class that prepared the data.
    return tfds.builder_from_directory(builder.data_path)


def _require_known_classes(folder: Path) -> None:
    """Raise if a prepared data set names a class outside TFDS whose module is not imported: TFDS would run that module.

    Raises:
        InputError: it does, or a description of features is not JSON.
    """
    for path in sorted(folder.rglob("features.json")):
        for name in _class_paths(files.read_json(path, "prepare the data set again")):
            module = name.rpartition(".")[0]
            if module.partition(".")[0] != "tensorflow_datasets" and module not in sys.modules:
                raise InputError(
                    f"{path}: the features are of class {fields.shown(name)}, whose module would be run; if you trust "
                    "it, import it in the configuration file"
                )


def _class_paths(description: Any) -> Iterator[str]:
    """The names of classes in a description of features, such as "package.module.Class"."""
    if isinstance(description, dict):
        for key, value in description.items():
            # Older files call it "type".
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str):
                yield value
            else:
                yield from _class_paths(value)
    elif isinstance(description, list):
        for value in description:
            yield from _class_paths(value)


def _records(tfds: Any, builder: Any, name: str, split: str, image_key: str) -> Any:
    # Bytes, not pixels: TFDS decodes with any library that it finds, and pixels would depend on it.
    decoders: Any = tfds.decode.SkipDecoding()
    for key in reversed(_path(builder.info.features, image_key)):
        decoders = {key: decoders}
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise InputError(
            f"{name} is prepared in {builder.data_path} in a format without random access; "
            "prepare it again in another folder with --file_format=array_record"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{name}: {_first_line(error)}; choose a split that has records, not {split!r}"
        ) from error


def _path(tree: Any, key: str) -> list[str]:
    """The nested names of a key: "objects/label" is two names, but "image/filename" may be one feature."""
    if not _has_names(tree) or key in tree:
        return [key]
    head, _, rest = key.partition("/")
    return [head, *_path(_inner(tree[head]), rest)] if rest and head in tree else [key]


def _has_names(tree: Any) -> bool:
    # TFDS's own dictionary of features is not a Mapping.
    return hasattr(tree, "keys")


def _inner(feature: Any) -> Any:
    """The feature inside a sequence; any other feature is returned unchanged."""
    return getattr(feature, "feature", feature)


def _feature(name: str, features: Any, key: str) -> Any:
    feature = features
    for part in _path(features, key):
        feature = _inner(feature)
        if not _has_names(feature) or part not in feature:
            raise InputError(f"{name} has no feature {key!r}; it has {', '.join(sorted(features))}")
        feature = feature[part]
    return feature


def _value(record: Any, key: str) -> Any:
    for part in _path(record, key):
        record = record[part]
    return record


def _require_image(tfds: Any, feature: Any, name: str, key: str) -> None:
    if not isinstance(feature, tfds.features.Image):
        raise InputError(
            f"{name}: feature {key!r} is {type(feature).__name__}, wanted Image; set image_key to the image's feature"
        )


def _class_names(tfds: Any, feature: Any, name: str, key: str) -> tuple[str, ...]:
    label = _inner(feature)
    if not isinstance(label, tfds.features.ClassLabel):
        raise InputError(
            f"{name}: feature {key!r} is {type(label).__name__}, wanted ClassLabel; set labels_key to the labels' feature"
        )
    return fields.class_names(label.names, f"{name}: feature {key!r}")
