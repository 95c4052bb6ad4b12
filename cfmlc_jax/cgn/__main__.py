"""Generate counterfactual records with a trained generator, and write them as files of the PyTorch reference.

    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_digits --out=records
    python -m cfmlc_jax.cgn export --records=records --out=mnists/data

The folder of generate has images with a label for shape, texture and background each; --config.data.counterfactuals.path
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
from cfmlc_jax import config as configs
from cfmlc_jax import files, lock
from cfmlc_jax.cgn import build, counterfactuals
from cfmlc_jax.cgn.commands import export
from cfmlc_jax.errors import InputError, RunError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    cli.tolerate_every_name()
    try:
        flags = _parser().parse_args(arguments)
        flags.run(flags)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _generate(flags) -> None:
    path = checkpoints.find(flags.checkpoint)
    meta = checkpoints.read_meta(path)
    if configs.system(meta["config"]) != configs.CGN:
        raise InputError(
            f"checkpoint {path} is of a classifier, which draws nothing; give a run of configs/cgn_digits.py"
        )
    if flags.records % flags.per_shape or flags.shard_size % flags.per_shape:
        raise InputError(
            f"--per-shape={flags.per_shape} must divide --records={flags.records} and --shard-size={flags.shard_size}"
        )
    files.require_savable(flags.out, "--out")
    config = configs.from_json(meta["config"])
    parts = build.create(config, len(meta["class_names"]))
    model = checkpoints.read_model(path, build.model_item(config, parts))
    files.create_folder(flags.out, "--out")
    with lock.held(flags.out, "generating"):
        counterfactuals.write(
            flags.out,
            parts.generator,
            counterfactuals.drawing_weights(model["average"], parts.generator, config.optim.ema_decay),
            class_names=meta["class_names"],
            num_records=flags.records,
            per_shape=flags.per_shape,
            shard_size=flags.shard_size,
            seed=flags.seed,
            mesh=parts.mesh,
            origin={"checkpoint": path.name, "data": config.data.source},
            print_line=print,
            poll=lambda: None,
        )


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m cfmlc_jax.cgn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="write a folder of counterfactual records")
    generate.set_defaults(run=_generate)
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
        default=10,
        metavar="N",
        help="images that share a shape, default 10",
    )
    generate.add_argument(
        "--shard-size",
        type=cli.whole_number(1),
        default=10_000,
        metavar="N",
        help="records in a file, default 10000",
    )
    generate.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")
    export.add_parser(commands)
    return parser


if __name__ == "__main__":
    cli.end(main())
