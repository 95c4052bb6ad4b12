"""Write the report of a run into its workdir.

    python -m cfmlc_jax.report runs/scenes

The report is one file, report/index.html. It shows results, classes, curves, co-occurrence, effects, pivots and
training curves, as far as they exist; of a generator, its sheets and its classifiers, whose reports are written too.
Neither the data nor a checkpoint is needed.

Exit codes: 0 done; 1 an error, printed in one line; 130 interrupted.
"""

import argparse
import math
import sys

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.end_at_interrupt("interrupted")

from cfmlc_jax import files
from cfmlc_jax.clusters import detect
from cfmlc_jax.errors import InputError, RunError, printable
from cfmlc_jax.report import page


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    cli.tolerate_every_name()
    try:
        flags = _parser().parse_args(arguments)
        detect.require_one_process(flags.cluster)
        path = page.write(files.place(flags.workdir, "WORKDIR", bucket=True), flags.alphas)
    except (InputError, RunError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    print(f"report {printable(str(path))}")
    return 0


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.report", description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="workdir of a run, local or in a bucket")
    parser.add_argument(
        "--alphas",
        type=_strengths,
        metavar="A,B,…",
        help="strengths of effects to compute from the saved scores; default: eleven from 0 to the largest configured one",
    )
    detect.add_flag(parser)
    return parser


def _strengths(text):
    try:
        alphas = [float(part) for part in text.split(",")]
    except ValueError:
        alphas = [math.nan]
    if not all(math.isfinite(alpha) and alpha >= 0 for alpha in alphas):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers of at least 0, such as 0,0.3,0.6"
        )
    return alphas


if __name__ == "__main__":
    cli.end(main())
