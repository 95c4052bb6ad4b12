"""Names to sources, and where their files are."""

import os
from pathlib import Path

from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.coco import Coco
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
    path = Path(root) if root else Path(os.environ.get(ROOT_VARIABLE, "data")) / name
    path = path.expanduser()
    if not path.is_dir():
        raise InputError(
            f"data root {path} is not a folder; set config.data.root or ${ROOT_VARIABLE}, "
            f"and see python scripts/prepare_data.py {name}"
        )
    return path


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
    root = data_root(name, data.root)
    if name == "vg256":
        return VisualGenome(root, split, data.vocabulary or root / "vg256.json")
    return {"coco": Coco, "voc2007": Voc, "table": Table}[name](root, split)
