"""The command that writes a folder of counterfactual records."""

import argparse

from cfmlc_jax import cli, files, lock
from cfmlc_jax.cgn import opening
from cfmlc_jax.cgn.commands import flags as common
from cfmlc_jax.config.cgn_imagenet import CLASSES
from cfmlc_jax.errors import InputError


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser("generate", help="write a folder of counterfactual records")
    parser.set_defaults(run=run)
    common.add_generator(parser)
    parser.add_argument("--out", type=files.local_path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--records", type=cli.whole_number(1), default=100_000, metavar="N", help="default 100000"
    )
    parser.add_argument(
        "--per-shape",
        type=cli.whole_number(1),
        metavar="N",
        help="images that share a shape, default 10; of ImageNet 1; not for scenes",
    )
    parser.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="ImageNet: of the noise, in (0, 1]; default: the configuration's",
    )
    parser.add_argument(
        "--classes",
        choices=CLASSES,
        help="ImageNet: random: all; best: those that look good, by the reference; default: the configuration's",
    )
    parser.add_argument(
        "--shard-size",
        type=cli.whole_number(1),
        default=10_000,
        metavar="N",
        help="records in a file, default 10000",
    )
    parser.add_argument(
        "--removals-alone",
        action="store_true",
        help="scenes: objects are removed and none added, to tell what the generated ones contribute",
    )
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")


def run(flags: argparse.Namespace) -> None:
    """Write the records, or resume.

    Raises:
        InputError: the flags do not fit each other, the checkpoint or the folder.
        RunError: the files cannot be written.
    """
    drawing = opening.open_to_draw(
        flags.checkpoint,
        truncation=flags.truncation,
        classes=flags.classes,
        removals_alone=flags.removals_alone,
    )
    options = {"num_records": flags.records, "shard_size": flags.shard_size, "seed": flags.seed}
    if drawing.per_shape is not None:
        options["per_shape"] = _per_shape(flags, drawing.per_shape)
    elif flags.per_shape is not None:
        raise InputError(
            f"--per-shape is for single objects, and {flags.checkpoint} composes scenes; omit it"
        )
    files.require_savable(flags.out, "--out")
    files.create_folder(flags.out, "--out")
    with lock.held(flags.out, "generating"):
        drawing.write(flags.out, **options, print_line=print, poll=lambda: None)


def _per_shape(flags, default):
    """Images that share a shape.

    Raises:
        InputError: the number does not divide those of records.
    """
    per_shape = flags.per_shape or default
    if flags.records % per_shape or flags.shard_size % per_shape:
        raise InputError(
            f"--per-shape={per_shape} must divide --records={flags.records} and --shard-size={flags.shard_size}"
        )
    return per_shape
