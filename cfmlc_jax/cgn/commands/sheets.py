"""The command that draws sheets: pictures of shapes, textures and backgrounds, exchanged and interpolated."""

import argparse

from cfmlc_jax import cli, files, lock
from cfmlc_jax.cgn import opening, sheets
from cfmlc_jax.cgn.commands import flags as common
from cfmlc_jax.errors import InputError


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser("sheets", help="draw pictures of mechanisms, exchanged and interpolated")
    parser.set_defaults(run=run)
    common.add_generator(parser)
    parser.add_argument("--out", type=files.local_path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--scale",
        type=cli.whole_number(1),
        default=sheets.SCALE,
        metavar="N",
        help=f"pixels for each drawn pixel, default {sheets.SCALE}",
    )
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")


def run(flags: argparse.Namespace) -> None:
    """Write the sheets into a new folder, and print their names.

    Raises:
        InputError: the checkpoint cannot be used, or the folder is not new.
        RunError: a file cannot be written.
    """
    folder = files.place(flags.out, "--out")
    _require_new(folder)
    opened = opening.open(flags.checkpoint)
    artist = sheets.Artist(opened.parts.generator, opened.parts.mesh, opened.class_names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be created ({error.strerror}); give another folder"
        ) from error
    with lock.held(folder, "drawing sheets"):
        drawn = artist.sheets(opened.drawing_weights(), flags.seed)
        for path in sheets.write(folder, drawn, flags.scale):
            print(path)


def _require_new(folder):
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; give a new folder")
    if folder.exists() and any(child.name != lock.FILE for child in folder.iterdir()):
        raise InputError(f"--out {folder} is not empty; give a new folder")
