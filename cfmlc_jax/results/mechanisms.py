"""What a run of a counterfactual generative network wrote: sheets, and the accuracies of its classifiers."""

import re

# Folder of the sheets in a workdir, and their names in the order in which they are shown.
FOLDER = "sheets"
SHEETS = (
    "mechanisms",
    "exchanged_texture",
    "exchanged_background",
    "interpolated_labels",
    "interpolated_noise",
)
# Of the accuracies in a report's folder.
FILE = "mechanisms.json"
_EPOCH = re.compile(r"epoch-(\d+)\.png")


def sheet_file(name: str) -> str:
    """The file name of a sheet, a name of `SHEETS`."""
    return f"{name}.png"


def epoch_file(epoch: int) -> str:
    """The file name of the sheet after an epoch, counted from 1."""
    return f"epoch-{epoch:03d}.png"
