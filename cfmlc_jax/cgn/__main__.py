"""Generate counterfactual records with a trained generator.

    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_digits --out=records

The folder then has images with a label for shape, texture and background each; --config.data.counterfactuals.path
trains a classifier on them. An interrupted command resumes when it is given again.

Exit codes: 0 done; 1 an error, printed in one line; 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.end_at_interrupt("interrupted; the same command resumes")

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import files, lock
from cfmlc_jax.cgn import counterfactuals, opening
from cfmlc_jax.config.cgn_imagenet import CLASSES
from cfmlc_jax.errors import InputError, RunError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    cli.tolerate_every_name()
    try:
        _generate(_parser().parse_args(arguments))
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _generate(flags) -> None:
    path = checkpoints.find(flags.checkpoint)
    opened = opening.open(path, truncation=flags.truncation, classes=flags.classes)
    per_shape = flags.per_shape or opened.per_shape
    if flags.records % per_shape or flags.shard_size % per_shape:
        raise InputError(
            f"--per-shape={per_shape} must divide --records={flags.records} and --shard-size={flags.shard_size}"
        )
    files.require_savable(flags.out, "--out")
    flags.out.mkdir(parents=True, exist_ok=True)
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


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m cfmlc_jax.cgn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="write a folder of counterfactual records")
    generate.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="RUN",
        help="a run of a generator, or one step of it",
    )
    generate.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    generate.add_argument(
        "--records", type=cli.whole_number(1), default=100_000, metavar="N", help="default 100000"
    )
    generate.add_argument(
        "--per-shape",
        type=cli.whole_number(1),
        metavar="N",
        help="images that share a shape, default 10; of ImageNet 1",
    )
    generate.add_argument(
        "--truncation",
        type=float,
        metavar="T",
        help="ImageNet: of the noise, in (0, 1]; default: the configuration's",
    )
    generate.add_argument(
        "--classes",
        choices=CLASSES,
        help="ImageNet: random: all; best: those that look good, by the reference; default: the configuration's",
    )
    generate.add_argument(
        "--shard-size",
        type=cli.whole_number(1),
        default=10_000,
        metavar="N",
        help="records in a file, default 10000",
    )
    generate.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")
    return parser


if __name__ == "__main__":
    cli.end(main())
