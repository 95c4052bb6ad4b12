"""The official files of CIFAR-10 and CIFAR-100: python or binary form, packed or unpacked.

A file that is not the official one, byte for byte, is an error. The pickles of the python form run no code.
"""

import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.data.sources import pickles
from cfmlc_jax.errors import InputError

SIDE = 32  # pixels
URL = "https://www.cs.toronto.edu/~kriz/"


class File(NamedTuple):
    """A file with its MD5 ("": not published) and size in bytes (0: not needed)."""

    name: str
    md5: str = ""
    size: int = 0


class Form(NamedTuple):
    """A form in which a data set is distributed: `archive` (tar.gz) unpacks to `folder` with all other files."""

    archive: File
    folder: str
    train: tuple[File, ...]
    test: tuple[File, ...]
    names: File


class DataSet(NamedTuple):
    """A data set of `num_train` training images, equally many of each of its k classes.

    labels, names: keys of labels and class names in the python form's pickles.
    label_bytes: number of label bytes before the pixels of a binary record; the last one is the class.
    """

    title: str
    num_classes: int
    num_train: int
    labels: bytes
    names: bytes
    label_bytes: int
    python: Form
    binary: Form


# MD5 of archives from the data sets' page (URL + cifar.html), of the python form's files from torchvision.
DATA_SETS = {
    "cifar10_lt": DataSet(
        title="CIFAR-10",
        num_classes=10,
        num_train=50_000,
        labels=b"labels",
        names=b"label_names",
        label_bytes=1,
        python=Form(
            archive=File("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", 170_498_071),
            folder="cifar-10-batches-py",
            train=(
                File("data_batch_1", "c99cafc152244af753f735de768cd75f"),
                File("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
                File("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
                File("data_batch_4", "634d18415352ddfa80567beed471001a"),
                File("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
            ),
            test=(File("test_batch", "40351d587109b95175f43aff81a1287e"),),
            names=File("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        ),
        binary=Form(
            archive=File("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),
            folder="cifar-10-batches-bin",
            train=tuple(File(f"data_batch_{i}.bin", size=30_730_000) for i in range(1, 6)),
            test=(File("test_batch.bin", size=30_730_000),),
            names=File("batches.meta.txt"),
        ),
    ),
    "cifar100_lt": DataSet(
        title="CIFAR-100",
        num_classes=100,
        num_train=50_000,
        labels=b"fine_labels",
        names=b"fine_label_names",
        label_bytes=2,  # the superclass, then the class
        python=Form(
            archive=File("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", 169_001_437),
            folder="cifar-100-python",
            train=(File("train", "16019d7e3df5f24257cddd939b257f8d"),),
            test=(File("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
            names=File("meta", "7973b15100ade9c7d40fb424638fde48"),
        ),
        binary=Form(
            archive=File("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 168_513_733),
            folder="cifar-100-binary",
            train=(File("train.bin", size=153_700_000),),
            test=(File("test.bin", size=30_740_000),),
            names=File("fine_label_names.txt"),
        ),
    ),
}


class Images(NamedTuple):
    """Pixels uint8 [n, 32, 32, 3], class of each image int64 [n], and the k class names."""

    pixels: np.ndarray
    classes: np.ndarray
    class_names: tuple[str, ...]


def read(data_set: DataSet, root: Path, *, train: bool) -> Images:
    """The training or the test images, in the order of the files.

    Args:
        data_set: one of `DATA_SETS`.
        root: the folder of a form, or a folder that contains it or its archive. Unpacked files are preferred
            to archives, and the python form to the binary one.
        train: True for the training images, False for the test images.

    Raises:
        InputError: no data set there (the message says what to download), or a file that is missing, damaged
            or not the official one.
    """
    form, contents = _contents(data_set, root, train)
    way_out = _way_out(form, root)
    files = form.train if train else form.test
    is_python = form is data_set.python
    parts = [
        _from_pickle(contents[file.name], data_set) if is_python else _records(contents[file.name], data_set)
        for file in files
    ]
    if is_python:
        names = [name.decode() for name in _unpickle(contents[form.names.name])[data_set.names]]
    else:
        names = contents[form.names.name].decode().split()
    pixels, classes = (np.concatenate(arrays) for arrays in zip(*parts))
    if len(names) != data_set.num_classes or classes.max() >= data_set.num_classes:
        raise InputError(
            f"{root}: {len(names)} class names and labels up to {classes.max()}, wanted {data_set.num_classes} "
            f"classes of {data_set.title}; {way_out}"
        )
    return Images(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1).copy(), classes, tuple(names))


def _contents(data_set, root, train) -> tuple[Form, Mapping[str, bytes]]:
    """The form that exists under the root, and the bytes of its files by name."""
    forms = (data_set.python, data_set.binary)
    for form in forms:
        folder = root if (root / form.names.name).is_file() else root / form.folder
        if folder.is_dir():
            return form, _from_folder(form, folder, train)
    for form in forms:
        if (root / form.archive.name).is_file():
            return form, _from_archive(form, root / form.archive.name, train)
    raise InputError(f"{root}: no {data_set.title} in it; {_way_out(data_set.python, root)}")


def _way_out(form, root):
    archive = form.archive
    return f"download {URL}{archive.name} ({archive.size:,} bytes) into {root}; it may stay packed"


def _wanted(form, train):
    return (*(form.train if train else form.test), form.names)


def _from_folder(form, folder, train):
    contents = {}
    for file in _wanted(form, train):
        path = folder / file.name
        try:
            contents[file.name] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; {_way_out(form, folder.parent)}") from error
        _require_official(path, file, contents[file.name], _way_out(form, folder.parent))
    return contents


def _from_archive(form, path, train):
    way_out = _way_out(form, path.parent)
    data = path.read_bytes()
    _require_official(path, form.archive, data, way_out)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            return {file.name: _member(archive, form, file) for file in _wanted(form, train)}
    except (KeyError, tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the archive cannot be read ({reason}); {way_out}") from error


def _member(archive, form, file):
    member = archive.extractfile(f"{form.folder}/{file.name}")
    if member is None:
        raise KeyError(f"{form.folder}/{file.name} is not a file")
    return member.read()


def _require_official(path, file, data, way_out):
    if file.size and len(data) != file.size:
        raise InputError(f"{path}: {len(data):,} bytes, wanted {file.size:,}; {way_out}")
    if file.md5:
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if md5 != file.md5:
            raise InputError(f"{path}: MD5 {md5}, wanted {file.md5}; {way_out}")


def _records(data, data_set):
    """Pixels [n, 3072] and classes [n] of a binary file."""
    records = np.frombuffer(data, np.uint8).reshape(-1, data_set.label_bytes + 3 * SIDE * SIDE)
    return records[:, data_set.label_bytes :], records[:, data_set.label_bytes - 1].astype(np.int64)


def _from_pickle(data, data_set):
    batch = _unpickle(data)
    return np.asarray(batch[b"data"]), np.asarray(batch[data_set.labels], np.int64)


def _unpickle(data):
    # The data sets' files, of 2009, have arrays and plain values only.
    return pickles.load(io.BytesIO(data), encoding="bytes")
