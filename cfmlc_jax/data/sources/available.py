"""Images of large public data sets that are on disk; those that are not are left out and counted, not an error.

Few copies of Open Images are complete (18 TB), and Flickr deletes pictures of NUS-WIDE.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cfmlc_jax.data.sources import files
from cfmlc_jax.errors import InputError


class Available(NamedTuple):
    """The images that are on disk.

    rows: int [m], their places in the list.
    paths: [m], relative to the root, spelled as on disk.
    left_out: a line about the others; "" if there are none.
    """

    rows: np.ndarray
    paths: list[str]
    left_out: str


def on_disk(root: Path, names: Sequence[str], folder: str, way_out: str) -> Available:
    """The images of a list that are on disk.

    Args:
        root: the folder to which the names are relative.
        names: paths normalised by `fields.relative_path`.
        folder: where they should be, for messages.
        way_out: the end of the error message.

    Raises:
        InputError: there is none.
    """
    spelled = files.find_files(root, names)
    rows = [row for row, name in enumerate(names) if name in spelled]
    if not rows:
        raise InputError(
            f"{root / folder}: none of {len(names):,} images is there, first {names[0]}; {way_out}"
        )
    missing = len(names) - len(rows)
    line = f"images left out: {missing:,} of {len(names):,} are not in {folder}" if missing else ""
    return Available(np.array(rows), [spelled[names[row]] for row in rows], line)
