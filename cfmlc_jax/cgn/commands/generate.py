"""The command that writes a folder of counterfactual records."""

import argparse
from pathlib import Path

from cfmlc_jax import cli, files, lock
from cfmlc_jax.cgn import counterfactuals, opening
from cfmlc_jax.config.cgn_imagenet import CLASSES
from cfmlc_jax.errors import InputError


def add_parser(commands) -> None:
    """Add the command to the subparsers of `python -m cfmlc_jax.cgn`."""
    parser = commands.add_parser("generate", help="write a folder of counterfactual records")
    parser.set_defaults(run=run)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="RUN",
        help="a run of a generator, or one step of it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--records", type=cli.whole_number(1), default=100_000, metavar="N", help="default 100000"
    )
    parser.add_argument(
        "--per-shape",
        type=cli.whole_number(1),
        metavar="N",
        help="images that share a shape, default 10; of ImageNet 1",
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
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")


def run(flags: argparse.Namespace) -> None:
    """Write the records, or resume.

    Raises:
        InputError: the flags do not fit each other, the checkpoint or the folder.
        RunError: the files cannot be written.
    """
    opened = opening.open_to_draw(flags.checkpoint, truncation=flags.truncation, classes=flags.classes)
    per_shape = flags.per_shape or opened.per_shape
    if flags.records % per_shape or flags.shard_size % per_shape:
        raise InputError(
            f"--per-shape={per_shape} must divide --records={flags.records} and --shard-size={flags.shard_size}"
        )
    files.require_savable(flags.out, "--out")
    files.create_folder(flags.out, "--out")
    with lock.held(flags.out, "generating"):
        counterfactuals.write(
            flags.out,
            opened.generator,
            opened.variables,
            class_names=opened.class_names,
            num_records=flags.records,
            per_shape=per_shape,
            shard_size=flags.shard_size,
            seed=flags.seed,
            mesh=opened.mesh,
            origin=opened.origin,
            print_line=print,
            poll=lambda: None,
            **opened.options,
        )
