"""Public weights: which there are, downloads into the cache, and digests of what is there.

    python -m cfmlc_jax.weights list [FILTER]
    python -m cfmlc_jax.weights fetch torchvision:resnet101.IMAGENET1K_V2
    python -m cfmlc_jax.weights check [NAME]

A run that starts from them (--config.init_from=NAME), and the conversion of files (cfmlc_jax.torch_weights NAME OUT), also
download what is missing; `fetch` does so where a machine has a network, for one that has none. NAME is one that `list`
names, or a repository of the Hugging Face Hub, hf:owner/name; the Hub needs pip install 'cfmlc_jax[hub]'.

Files lie in $CFMLC_CACHE/weights, without that variable in the user's cache. $CFMLC_MIRROR is a web folder to download from
instead, $HF_ENDPOINT another Hub.
Exit codes: 0 success; 1 an error, printed in one line, or a wrong digest; 130 interrupted, 143 by SIGTERM.
"""

import argparse
import sys
from collections.abc import Sequence

from cfmlc_jax import cli

if __name__ == "__main__":  # before the imports
    cli.end_at_interrupt("the same command goes on where the transfer was")

from cfmlc_jax.errors import InputError
from cfmlc_jax.weights import cache
from cfmlc_jax.weights.fetch import HUB, Named, fetch, named
from cfmlc_jax.weights.table import TABLE, nearest

PROGRAM = "python -m cfmlc_jax.weights"
COLUMNS = ("name", "model", "MB", "pixels", "licence", "score", "here")


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    flags = _parser().parse_args(arguments)
    return _COMMANDS[flags.command](flags)


def _list(flags: argparse.Namespace) -> int:
    """Print the table of the weights whose name, model, licence or score contains the filter."""
    wanted = flags.filter.lower()
    rows = [row for row in map(_row, map(_named, TABLE)) if wanted in " ".join(row[:-1]).lower()]
    if not rows:
        raise InputError(
            f"no weights match {flags.filter!r}{nearest(flags.filter)}; {PROGRAM} list names all"
        )
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    for row in (COLUMNS, *rows):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
    print(f"\nfiles in {cache.folder()}")
    return 0


def _row(weights):
    entry = weights.entry
    return (
        entry.name,
        entry.model,
        f"{entry.megabytes:.1f}" if entry.megabytes else "",
        str(entry.preprocessing),
        entry.licence or "see its page",
        entry.score,
        "yes" if weights.present() else "" if entry.url or entry.hub else "by hand",
    )


def _fetch(flags: argparse.Namespace) -> int:
    """Print the path of each file, downloaded unless it is there."""
    for weights in [_named(name) for name in flags.name]:  # misspelt names are told before the first download
        path = fetch(weights, _say)
        entry = weights.entry
        if entry is not None:
            _say(
                f"{entry.name}: {entry.model}, pixels {entry.preprocessing}, licence {entry.licence or 'see ' + entry.page}"
            )
        print(path)
    return 0


def _check(flags: argparse.Namespace) -> int:
    """Print whether each file in the cache has its digest; 1 if one has not."""
    asked = [_named(name) for name in flags.name or (*TABLE, *_repositories())]
    present = [(weights, path) for weights in asked if (path := weights.present()) is not None]
    if not flags.name and not present:
        print(f"no weights in {cache.folder()}")
        return 0
    for weights in asked:
        if flags.name and weights.present() is None:
            raise InputError(f"{weights.text} is not in the cache; {PROGRAM} fetch {weights.text}")
    wrong = 0
    for weights, path in present:
        result = _checked(weights, path)
        wrong += result.startswith("WRONG")
        print(f"{weights.text}: {result} ({path})")
    return 1 if wrong else 0


def _repositories():
    """Names of the repositories in the cache that are not in the table."""
    known = {entry.hub for entry in TABLE.values()}
    folders = (cache.folder() / HUB).glob("*/*")
    names = sorted(f"{folder.parent.name}/{folder.name}" for folder in folders if folder.is_dir())
    return [f"{HUB}:{name}" for name in names if name not in known]


def _checked(weights, path):
    """What the digest of a file says, on one line."""
    digest = cache.sha256(path)
    published = weights.entry.sha256 if weights.entry is not None else ""
    own = cache.recorded(path)
    for wanted in filter(None, (published, own)):
        if not digest.startswith(wanted):
            return f"WRONG, SHA-256 {digest} instead of {wanted}; remove it and fetch it again"
    if own:
        return f"as downloaded, SHA-256 {digest}" + (", as published" if published else "")
    return f"as published, SHA-256 {digest}" if published else f"no digest is published; SHA-256 {digest}"


def _named(text) -> Named:
    weights = named(text)
    if weights is None:
        raise InputError(f"{text!r} is not a name of weights{nearest(text)}; {PROGRAM} list names all")
    return weights


def _say(text):
    print(text, file=sys.stderr, flush=True)


_COMMANDS = {"list": _list, "fetch": _fetch, "check": _check}


def _parser():
    parser = cli.Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|fetch|check")
    add = commands.add_parser("list", help="the known weights")
    add.add_argument(
        "filter", metavar="FILTER", nargs="?", default="", help="part of a name, model, licence or score"
    )
    add = commands.add_parser("fetch", help="download into the cache")
    add.add_argument("name", metavar="NAME", nargs="+", help="as listed, or hf:owner/name")
    add = commands.add_parser("check", help="compare digests of what is in the cache")
    add.add_argument(
        "name", metavar="NAME", nargs="*", help="as listed, or hf:owner/name; default: all listed"
    )
    return parser


if __name__ == "__main__":
    cli.end(main())
