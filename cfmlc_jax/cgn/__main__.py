"""Generate counterfactual records with a trained generator.

    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_digits --out=records

The folder then has images with a label for shape, texture and background each; of a run on the objects of scenes
(configs/cgn_scenes.py), multi-label scenes. --config.data.counterfactuals.path trains a classifier on them. An interrupted
command resumes when it is given again.

Exit codes: 0 done; 1 an error, printed in one line; 130 interrupted.
"""

import argparse
import sys
from pathlib import Path
from typing import cast

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.end_at_interrupt("interrupted; the same command resumes")

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files, lock
from cfmlc_jax.cgn import build, counterfactuals, scenes
from cfmlc_jax.config.cgn import SCENE_OBJECTS
from cfmlc_jax.data import build as data
from cfmlc_jax.data.sources.scene_objects import SceneObjects
from cfmlc_jax.errors import InputError, RunError

_PER_SHAPE = 10


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
    meta = checkpoints.read_meta(path)
    if configs.system(meta["config"]) != configs.CGN:
        raise InputError(
            f"checkpoint {path} is of a classifier, which draws nothing; give a run of configs/cgn_digits.py"
        )
    config = configs.from_json(meta["config"])
    of_scenes = config.data.source == SCENE_OBJECTS
    if of_scenes and flags.per_shape is not None:
        raise InputError(f"--per-shape is for single objects, and {path} composes scenes; omit it")
    if flags.removals_alone and not of_scenes:
        raise InputError(f"--removals-alone is for scenes, and {path} draws single objects; omit it")
    per_shape = _PER_SHAPE if flags.per_shape is None else flags.per_shape
    if not of_scenes and (flags.records % per_shape or flags.shard_size % per_shape):
        raise InputError(
            f"--per-shape={per_shape} must divide --records={flags.records} and --shard-size={flags.shard_size}"
        )
    files.require_savable(flags.out, "--out")
    parts = build.create(config, len(meta["class_names"]))
    model = checkpoints.read_model(path, build.model_item(config, parts))
    flags.out.mkdir(parents=True, exist_ok=True)
    with lock.held(flags.out, "generating"):
        weights = counterfactuals.drawing_weights(model["average"], parts.generator, config.optim.ema_decay)
        options = {
            "num_records": flags.records,
            "shard_size": flags.shard_size,
            "seed": flags.seed,
            "mesh": parts.mesh,
            "origin": {"checkpoint": path.name, "data": config.data.source},
            "print_line": print,
            "poll": lambda: None,
        }
        if of_scenes:
            scenes.write(
                flags.out,
                parts.generator,
                weights,
                cast(SceneObjects, data.source(config.data, "train")),
                generated_backgrounds=config.counterfactuals.generated_backgrounds,
                removals_alone=flags.removals_alone,
                **options,
            )
            return
        counterfactuals.write(
            flags.out,
            parts.generator,
            weights,
            class_names=meta["class_names"],
            per_shape=per_shape,
            **options,
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
        help=f"images that share a shape, default {_PER_SHAPE}; not for scenes",
    )
    generate.add_argument(
        "--shard-size",
        type=cli.whole_number(1),
        default=10_000,
        metavar="N",
        help="records in a file, default 10000",
    )
    generate.add_argument(
        "--removals-alone",
        action="store_true",
        help="scenes: objects are removed and none added, to tell what the generated ones contribute",
    )
    generate.add_argument("--seed", type=cli.whole_number(0), default=0, metavar="N", help="default 0")
    return parser


if __name__ == "__main__":
    cli.end(main())
