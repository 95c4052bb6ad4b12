"""Write the report of a run into its workdir, or compare two runs.

    python -m cfmlc_jax.report runs/scenes
    python -m cfmlc_jax.report runs/scenes_whole runs/scenes

The report is one file, report/index.html. It shows results, classes, curves, co-occurrence, effects, pivots and
training curves, as far as they exist; of a generator, its sheets and its classifiers, whose reports are written too.
Neither the data nor a checkpoint is needed.

Of two runs it writes a page about the second against the first, report/comparison.html in the second or FILE: differences
of mAP, and of the average precision of each class, with intervals. Both must have been evaluated on the same images.

Exit codes: 0 done; 1 an error, printed in one line; 130 interrupted, 143 by SIGTERM.
"""

import argparse
import math
from pathlib import Path

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.end_at_interrupt()

from cfmlc_jax import files
from cfmlc_jax.clusters import detect
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.report import comparison, page
from cfmlc_jax.results import predictions
from cfmlc_jax.results.predictions import COMBINED


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    flags = _parser().parse_args(arguments)
    detect.require_one_process(flags.cluster)
    path = _written(flags)
    print(f"report {printable(str(path))}")
    return 0


def _written(flags) -> Path:
    """The path of the page, which is written."""
    workdir = files.place(flags.workdir, "WORKDIR", bucket=True)
    if flags.other is None:
        if flags.out is not None or flags.prediction is not None:
            raise InputError(
                "--out and --prediction are for the comparison of two runs; name another WORKDIR, or omit them"
            )
        return page.write(workdir, flags.alphas)
    if flags.alphas is not None:
        raise InputError("--alphas is for the report of one run; omit it, or the other WORKDIR")
    prediction = flags.prediction or COMBINED
    other = files.place(flags.other, "WORKDIR", bucket=True)
    path, lines = comparison.write(workdir, other, flags.out, (prediction, prediction))
    for line in lines:
        print(printable(line))
    return path


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.report", description=__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", help="workdir of a run, local or in a bucket")
    parser.add_argument("other", metavar="WORKDIR", nargs="?", help="a run to compare with the first")
    parser.add_argument(
        "--out",
        type=files.any_path,
        metavar="FILE",
        help="the page that compares; default report/comparison.html of the second",
    )
    parser.add_argument(
        "--prediction",
        type=predictions.argument,
        metavar="NAME",
        help="that is compared, such as tde_pivot_0.5; default combined",
    )
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
