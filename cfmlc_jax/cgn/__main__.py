"""Commands of counterfactual generative networks, and of the cues that classifiers follow.

    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_digits --out=records
    python -m cfmlc_jax.cgn export --records=records --out=mnists/data
    python -m cfmlc_jax.cgn sheets --checkpoint=runs/cgn_digits --out=pictures
    python -m cfmlc_jax.cgn masks --checkpoint=runs/cgn_digits
    python -m cfmlc_jax.cgn cues --checkpoint=runs/cgn_digits/plain
    python -m cfmlc_jax.cgn shape_bias --checkpoint=runs/imagenet --data=style-transfer-preprocessed-512
    python -m cfmlc_jax.cgn background_gap --checkpoint=runs/imagenet --data=bg_challenge

generate writes images with a label for shape, texture and background each, or, of a run on the objects of scenes
(configs/cgn_scenes.py), multi-label scenes; --config.data.counterfactuals.path trains a classifier on them. An interrupted
command resumes when it is given again. The others write such records as files of the PyTorch reference (export), draw pictures
(sheets), and measure: masks a generator, the rest any classifier. COMMAND --help says more.

Exit codes: 0 done; 1 an error, printed in one line; 130 interrupted, 143 by SIGTERM; 141 nobody reads the output any more.
"""

import argparse
import logging
import warnings

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.end_at_interrupt("give the same command again")

from cfmlc_jax.cgn.commands import background_gap, cues, export, generate, masks, shape_bias, sheets
from cfmlc_jax.clusters import detect
from cfmlc_jax.engine import compilation

NOBODY_READS = 128 + 13
COMMANDS = (generate, export, sheets, masks, cues, shape_bias, background_gap)


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    # Otherwise Orbax logs every restore.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        flags = _parser().parse_args(arguments)
        detect.require_one_process(flags.cluster)
        with warnings.catch_warnings():
            # Pillow warns about odd files, and reads them.
            warnings.filterwarnings("ignore", module="PIL")
            compilation.keep(flags.compilation_cache)
            flags.run(flags)
    except BrokenPipeError:
        return NOBODY_READS
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(prog="python -m cfmlc_jax.cgn", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    for each in commands.choices.values():
        compilation.add_flag(each)
        detect.add_flag(each)
    return parser


if __name__ == "__main__":
    cli.end(main())
