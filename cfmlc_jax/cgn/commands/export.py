"""The command that writes records under the names that the reference's own classifiers read."""

import argparse

from cfmlc_jax import files
from cfmlc_jax.cgn import reference_files
from cfmlc_jax.data.sources.counterfactuals import Counterfactuals


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser("export", help="write records as files of the PyTorch reference")
    parser.set_defaults(run=run)
    parser.add_argument(
        "--records",
        type=files.local_path,
        required=True,
        metavar="FOLDER",
        help="of generated records, such as runs/cgn_mnist/counterfactuals",
    )
    parser.add_argument(
        "--out", type=files.local_path, required=True, metavar="FOLDER", help="of the new files"
    )
    parser.add_argument(
        "--layout",
        choices=reference_files.LAYOUTS,
        default="tensors",
        help="tensors (default): NAME_counterfactual.pth for the digits' classifier; "
        "photos: OUT/NAME/ims/NAME_0000000_x_gen.jpg and labels.csv for the ImageNet classifier",
    )
    parser.add_argument(
        "--name",
        default="",
        help="default for tensors: by the data, such as double_colored_MNIST; for photos: train",
    )


def run(flags: argparse.Namespace) -> None:
    """Write the files.

    Raises:
        InputError: no readable records; a name that does not suit the layout; PyTorch is missing; files that exist.
        RunError: the files cannot be written.
    """
    files.require_savable(flags.out, "--out")
    print(reference_files.LAYOUTS[flags.layout](Counterfactuals(flags.records), flags.out, flags.name))
