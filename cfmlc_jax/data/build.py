"""Names to sources, and where their files are."""

import os
from pathlib import Path

from cfmlc_jax.data.sources import Source, cifar_files, image_list
from cfmlc_jax.data.sources.cifar_lt import CifarLT
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.image_list import ImageList
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.data.sources.tfds import Tfds
from cfmlc_jax.data.sources.visual_genome import VisualGenome
from cfmlc_jax.data.sources.voc import Voc
from cfmlc_jax.errors import InputError

ROOT_VARIABLE = "CFMLC_DATA"


def data_root(name: str, root: str) -> Path:
    """The data set's folder: `root` if set, else $CFMLC_DATA/<name>, else data/<name>.

    Raises:
        InputError: there is no such folder.
    """
    path = place(name, root)
    if not path.is_dir():
        raise InputError(
            f"data root {path} is not a folder; set config.data.root or ${ROOT_VARIABLE}, "
            f"and see python scripts/prepare_data.py {name}{f' --root={root}' if root else ''}"
        )
    return path


def place(name: str, root: str = "") -> Path:
    """Where a data set's folder is to be: see `data_root`."""
    path = Path(root) if root else Path(os.environ.get(ROOT_VARIABLE, "data")) / name
    return path.expanduser()


def source(data, split: str) -> Source:
    """The source that config.data names, one split of it.

    Raises:
        InputError: what the source cannot read, see each.
    """
    name = data.source
    if name == "scenes":
        num_scenes = data.scenes.num_train if split == "train" else data.scenes.num_test
        bias = {} if split in ("test_balanced", "test_conflict") else {"bias": data.scenes.bias}
        return Scenes(split, num_scenes=num_scenes, **bias)
    if name == "tfds":
        return Tfds(data.root or "~/tensorflow_datasets", split, **data.tfds)
    tail = {"kind": data.longtail.imbalance} | {
        field: data.longtail[field] for field in ("ratio", "seed", "shuffle_classes")
    }
    if name == "long_tailed_digits":
        return LongTailedDigits(split, most=data.longtail.digits, num_test=data.longtail.num_test, **tail)
    # These two say themselves what to put where.
    if name in cifar_files.DATA_SETS:
        return CifarLT(name, place(name, data.root), split, **tail)
    if name in image_list.STEMS:
        return ImageList(place(name, data.root), split, stem=image_list.STEMS[name])
    root = data_root(name, data.root)
    if name == "vg256":
        return VisualGenome(root, split, data.vocabulary or root / "vg256.json")
    return {"coco": Coco, "voc2007": Voc, "table": Table}[name](root, split)
