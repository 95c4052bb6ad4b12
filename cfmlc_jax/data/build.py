"""The table of sources by name, and the folders of their files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from cfmlc_jax.buckets import Address
from cfmlc_jax.data.sources import MechanismSource, Source, files, image_list, mechanism_digits
from cfmlc_jax.data.sources.cifar_lt import CifarLT
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.counterfactuals import open_records
from cfmlc_jax.data.sources.image_list import ImageList
from cfmlc_jax.data.sources.instances import Instances
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.data.sources.nus_wide import NusWide
from cfmlc_jax.data.sources.open_images import OpenImages
from cfmlc_jax.data.sources.scene_objects import SceneObjects
from cfmlc_jax.data.sources.scenes import DIGITS, PHOTOS, Scenes
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.sources.tfds import Tfds
from cfmlc_jax.data.sources.visual_genome import VisualGenome
from cfmlc_jax.data.sources.voc import Voc
from cfmlc_jax.errors import InputError
from cfmlc_jax.files import path_of

ROOT_VARIABLE = "CFMLC_DATA"
# Sources of scenes, and what their objects are.
SCENES = {"scenes": DIGITS, "photo_scenes": PHOTOS}


def data_root(name: str, root: str) -> Path:
    """The data set's folder: `root` if set, else $CFMLC_DATA/<name>, else data/<name>.

    Raises:
        InputError: the folder does not exist.
    """
    path = place(name, root)
    if not path.is_dir():
        raise InputError(
            f"data root {path} is not a folder; set config.data.root or ${ROOT_VARIABLE}, "
            f"and see python -m cfmlc_jax.data {name}{f' --root={root}' if root else ''}"
        )
    return path


def place(name: str, root: str = "") -> Path:
    """The path of a data set's folder, as in `data_root`, whether or not it exists."""
    path = path_of(root or os.path.join(os.environ.get(ROOT_VARIABLE, "data"), name))
    if isinstance(path, Address) and not _reads_buckets(name):
        readers = ", ".join(each for each in SOURCES if _reads_buckets(each))
        raise InputError(
            f"data source {name} cannot be read from {path}: those that can are {readers}; copy it to a local folder"
        )
    return path


def _reads_buckets(name: str) -> bool:
    return name in SOURCES and SOURCES[name].bucket


class Opening(NamedTuple):
    """How a data set is opened.

    open: (config.data, split) -> the source.
    fields: fields of config.data that it reads besides the common ones; sections end with a dot.
    has_mechanisms: it is a `sources.MechanismSource` with masks.
    bucket: its files can be in a bucket.
    partial: its labels can be partial; it reads config.data.unmentioned.
    """

    open: Callable[[Any, str], Source]
    fields: tuple[str, ...] = ()
    has_mechanisms: bool = False
    bucket: bool = False
    partial: bool = False


def _in_folder(kind: Callable) -> Callable[[Any, str], Source]:
    """The `Opening.open` of a source class whose folder must exist: (config.data, split) -> the source."""
    return lambda data, split: kind(data_root(data.source, data.root), split)


def _visual_genome(data, split):
    root = data_root(data.source, data.root)
    return VisualGenome(root, split, data.vocabulary or root / "vg256.json")


def _coco2017(data, split):
    return Coco(data_root(data.source, data.root), split, year="2017")


def _instances(data, split):
    files.require_split(split)
    own = data.instances
    return Instances(
        data_root(data.source, data.root),
        split,
        json=own[f"{split}_json"],
        images=own[f"{split}_images"],
        listed=own[f"{split}_list"],
    )


def _open_images(data, split):
    return OpenImages(data_root(data.source, data.root), split, unmentioned=data.unmentioned)


def _table(data, split):
    return Table(data_root(data.source, data.root), split, unmentioned=data.unmentioned)


def _tfds(data, split):
    place("tfds", data.root)
    return Tfds(data.root or "~/tensorflow_datasets", split, **data.tfds)


def _scenes(data, split):
    num_scenes = data.scenes.num_train if split == "train" else data.scenes.num_test
    bias = {} if split in ("test_balanced", "test_conflict") else {"bias": data.scenes.bias}
    return Scenes(split, num_scenes=num_scenes, **bias, objects=SCENES.get(data.source, DIGITS))


def _scene_objects(data, split):
    return SceneObjects(_scenes(data, split))


# Sources of CIFAR, of lists and of MNIST need no existing folder here: their own errors say which files belong where.
def _cifar(data, split):
    return CifarLT(data.source, place(data.source, data.root), split, **_tail(data.longtail))


def _image_list(data, split):
    stem = image_list.STEMS[data.source]
    return ImageList(place(data.source, data.root), split, stem=stem)


def _counterfactuals(data, split):
    folder = place(data.source, data.root)
    inner = folder / split
    if not inner.is_dir() and split != "train":
        raise InputError(
            f"generated records in {folder} have no split {split!r}: generate it, with another seed, into {inner}"
        )
    return open_records(inner if inner.is_dir() else folder)


def _digits(data, split):
    tail = data.longtail
    return LongTailedDigits(split, most=tail.largest, num_test=tail.num_test, **_tail(tail))


def _mechanism_digits(data, split):
    return mechanism_digits.embedded(data.source, _mechanism_split(data, split))


def _mechanism_mnist(data, split):
    return mechanism_digits.official(data.source, place("mnist", data.root), _mechanism_split(data, split))


def _mechanism_split(data, split):
    """The name of the split in the source; the training split can be decorrelated."""
    return "train_decorrelated" if split == "train" and data.mechanisms.decorrelated else split


def _tail(longtail):
    return {
        "kind": longtail.imbalance,
        "ratio": longtail.ratio,
        "seed": longtail.subset_seed,
        "shuffle_classes": longtail.shuffle_classes,
    }


_TAIL = ("longtail.imbalance", "longtail.ratio", "longtail.subset_seed", "longtail.shuffle_classes")


def _of_mechanisms(open):
    return Opening(open, ("mechanisms.",), has_mechanisms=True)


SOURCES = {
    "coco": Opening(_in_folder(Coco), bucket=True),
    "coco2017": Opening(_coco2017, bucket=True),
    "instances": Opening(_instances, ("instances.",), bucket=True),
    "open_images": Opening(_open_images, partial=True),
    "nus_wide": Opening(_in_folder(NusWide)),
    "voc2007": Opening(_in_folder(Voc), bucket=True),
    "vg256": Opening(_visual_genome, ("vocabulary",), bucket=True),
    "table": Opening(_table, bucket=True, partial=True),
    "tfds": Opening(_tfds, ("tfds.",)),
    **{name: Opening(_scenes, ("scenes.",)) for name in SCENES},
    "cifar10_lt": Opening(_cifar, _TAIL),
    "cifar100_lt": Opening(_cifar, _TAIL),
    "imagenet_lt": Opening(_image_list, bucket=True),
    "places_lt": Opening(_image_list, bucket=True),
    # The folder of each split, or the folder itself for "train".
    "counterfactuals": Opening(_counterfactuals),
    "long_tailed_digits": Opening(_digits, (*_TAIL, "longtail.largest", "longtail.num_test")),
    "colored_digits": _of_mechanisms(_mechanism_digits),
    "double_colored_digits": _of_mechanisms(_mechanism_digits),
    "wildlife_digits": _of_mechanisms(_mechanism_digits),
    "colored_mnist": _of_mechanisms(_mechanism_mnist),
    "double_colored_mnist": _of_mechanisms(_mechanism_mnist),
    "wildlife_mnist": _of_mechanisms(_mechanism_mnist),
    "scene_objects": Opening(_scene_objects, ("scenes.",), has_mechanisms=True),
}


def source(data, split: str) -> Source:
    """One split of the source named by config.data.

    Raises:
        InputError: the source cannot be read; see each source.
    """
    return SOURCES[data.source].open(data, split)


def mechanism_source(data, split: str) -> MechanismSource:
    """One split of a source whose `Opening.has_mechanisms` is true.

    Raises:
        InputError: the source cannot be read; see each source.
    """
    return cast(MechanismSource, source(data, split))
