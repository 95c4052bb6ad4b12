"""Check the tables of your own images before a run, every line and every file.

    python -m cfmlc_jax.check photos

photos is a folder with train.csv and val.csv, as configs/own_images.py reads it. Errors are labels that cannot be used,
missing and broken files, the same picture in both splits, the same picture with two sets of labels, and classes without
a training image. Warnings are duplicates, rare classes, small, slim and turned images. All of them are written to
index.html and check.json in the folder of --output.

Exit codes: 0 no error; 1 there are errors, which are counted; 130 interrupted, 143 by SIGTERM.
"""

import collections
import json

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.end_at_interrupt()

from cfmlc_jax import files
from cfmlc_jax.check import findings, page
from cfmlc_jax.check.findings import Findings, Options
from cfmlc_jax.data.sources.partial import UNMENTIONED
from cfmlc_jax.errors import InputError, printable

_DEFAULT = Options()
_PROGRESS = 1000  # files between two lines of progress


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    flags = _parser().parse_args(arguments)
    folder = files.place(flags.table, "TABLE", bucket=True)
    if not folder.is_dir():
        raise InputError(f"TABLE {folder} is not a folder; give the folder with train.csv and val.csv")
    options = Options(
        unmentioned=flags.unmentioned, rare=flags.rare, smallest=flags.smallest, threads=flags.threads
    )
    output = files.place(flags.output, "--output")
    files.create_folder(output, "--output")
    found = findings.check(folder, options, _print_progress)
    try:
        files.write_text(output / "index.html", page.page(found))
        files.write_text(output / "check.json", json.dumps(found.to_json(), indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"--output {output} cannot be written ({error.strerror}); give another folder"
        ) from error
    print(_summary(found))
    print(f"page {printable(str(output / 'index.html'))}")
    return 1 if found.errors else 0


def _print_progress(done: int, number: int) -> None:
    if done % _PROGRESS == 0:
        print(f"{done:,} of {number:,} files read", flush=True)


def _summary(found: Findings) -> str:
    """The number of problems of each kind, with the first of them."""
    lines = [", ".join(page.facts(found))]
    for title, problems in (("error", found.errors), ("warning", found.warnings)):
        counts = collections.Counter(problem.kind for problem in problems)
        for kind, count in counts.items():
            first = next(problem.text for problem in problems if problem.kind == kind)
            lines.append(printable(f"  {title}: {kind}, {count:,}; first {first}"))
    return "\n".join(lines)


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.check", description=__doc__)
    parser.add_argument(
        "table", metavar="TABLE", help="folder with train.csv and val.csv, local or in a bucket"
    )
    parser.add_argument(
        "--output", default="data_check", metavar="DIR", help="folder of the page (default: data_check)"
    )
    parser.add_argument(
        "--unmentioned",
        choices=UNMENTIONED,
        default=_DEFAULT.unmentioned,
        help="what a class is that a line does not mention (default: absent), as config.data.unmentioned",
    )
    parser.add_argument(
        "--rare",
        type=cli.whole_number(1),
        default=_DEFAULT.rare,
        metavar="N",
        help=f"warn of classes with fewer training images (default: {_DEFAULT.rare})",
    )
    parser.add_argument(
        "--smallest",
        type=cli.whole_number(1),
        default=_DEFAULT.smallest,
        metavar="PIXELS",
        help=f"warn of images whose shorter side is shorter (default: {_DEFAULT.smallest})",
    )
    parser.add_argument(
        "--threads",
        type=cli.whole_number(1),
        default=_DEFAULT.threads,
        metavar="N",
        help="threads that read files",
    )
    return parser


if __name__ == "__main__":
    cli.end(main())
