"""Generated records under the names and in the forms that the reference's own classifiers read.

The reference is counterfactual_generative_networks: `mnists/train_classifier.py` reads tensors from mnists/data,
`imagenet/train_classifier.py` reads photos from the folder that its flag names.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cfmlc_jax import files
from cfmlc_jax.data.sources import counterfactuals
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals
from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights import files as torch_files

# Data set of the records -> the name that the reference's classifier of digits has for it.
_DIGITS = {
    f"{look}_{kind}": f"{look}_MNIST"
    for look in ("colored", "double_colored", "wildlife")
    for kind in ("digits", "mnist")
}
# The classifier of photos reads from folders with these beginnings.
_PARTS = ("train", "val")


def write_tensors(records: Counterfactuals, folder: Path, name: str = "") -> str:
    """Write NAME_counterfactual.pth: a list of images float32 [n, 3, h, w] in [−1, 1] and digits int64 [n].

    Returns a line about it.

    Args:
        records: generated digits.
        folder: of the file; it is created.
        name: one of the reference's data sets; empty: by the data of the records.

    Raises:
        InputError: PyTorch is missing; no name for these records; the file exists or cannot be written.
    """
    known = sorted(set(_DIGITS.values()))
    name = name or _DIGITS.get(records.data, "")
    if name not in known:
        raise InputError(
            f"--name={name}: the reference's classifier of digits knows {', '.join(known)} (the records are of data "
            f"{records.data!r}); give one of these, or --layout=photos"
        )
    path = folder / f"{name}_counterfactual.pth"
    torch = torch_files.import_torch(f"to write {path}")
    _require_new(path)
    files.create_folder(folder, "--out")
    images = np.empty((len(records), 3, records.image_size, records.image_size), np.float32)
    for index in range(len(records)):
        images[index] = _pixels(records, index).transpose(2, 0, 1) / np.float32(127.5) - 1
    digits = records.labels.argmax(axis=1).astype(np.int64)
    torch_files.save(torch, path, [torch.from_numpy(images), torch.from_numpy(digits)])
    return (
        f"{path}: {len(records):,} images. In a checkout of the reference put it into mnists/data, beside "
        f"{name}_test.pth of its generate_data.py, and train on {name}_counterfactual"
    )


def write_photos(records: Counterfactuals, folder: Path, name: str = "") -> str:
    """Write NAME/ims/NAME_0000000_x_gen.jpg and so on, and their labels in NAME/labels.csv.

    Returns a line about it. The reference stretches the brightness of each image from black to white; here it
    stays as it is.

    Args:
        records: generated images.
        folder: of the new folder NAME.
        name: begins with "train" or "val"; empty: "train".

    Raises:
        InputError: another name, or NAME exists.
        WriteError: a file cannot be written.
    """
    name = name or "train"
    if not name.startswith(_PARTS) or Path(name).name != name:
        raise InputError(
            f"--name={name}: the reference reads folders whose names begin with train or val; give such a name"
        )
    _require_new(folder / name)
    files.create_folder(folder / name / "ims", "--out")
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["", "im_name", "shape_cls", "texture_cls", "bg_cls"])
    for index, labels in enumerate(records.mechanisms.tolist()):
        image_name = f"{name}_{index:07d}"
        data = records[index]["image"]
        if not data.startswith(b"\xff\xd8"):
            data = counterfactuals.encoded(_pixels(records, index), "jpeg")
        files.write_bytes(folder / name / "ims" / f"{image_name}_x_gen.jpg", data)
        rows.writerow([index, image_name, *labels])
    # Last: a folder with labels is complete.
    files.write_text(folder / name / "labels.csv", table.getvalue())
    return (
        f"{folder / name}: {len(records):,} images. The reference's data loader is to look for x_gen: "
        "ImagenetCounterfactual(…, mode='x_gen')"
    )


LAYOUTS: dict[str, Callable[[Counterfactuals, Path, str], str]] = {
    "tensors": write_tensors,
    "photos": write_photos,
}


def _pixels(records, index):
    """The image of a record, uint8 [h, w, 3]."""
    record = records[index]
    return np.asarray(decode(record["image"], record["where"]))


def _require_new(path):
    if path.exists():
        raise InputError(f"{path} exists already; remove it, or give another --out or --name")
