"""Executes the notebooks of docs/notebooks from top to bottom, each in an empty folder; the first error ends it.

    python scripts/run_notebooks.py --quick             a step or two of each training: does every cell still run?
    python scripts/run_notebooks.py --write             as a reader runs them; the outputs are kept in the files
    python scripts/run_notebooks.py --write look_inside

Needs the extra "notebooks". Exit code 1: a cell failed, and its error is printed.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cfmlc_jax.errors import InputError, RunError

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# What the notebooks read their budgets by.
QUICK = "CFMLC_NOTEBOOK_QUICK"
LONGEST = 1800  # seconds of a cell


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command line, sys.argv by default."""
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"{', '.join(names)}; default all")
    parser.add_argument("--quick", action="store_true", help="small budgets")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    flags = parser.parse_args(arguments)
    if flags.quick and flags.write:
        parser.error("--quick makes outputs that nobody should read; omit it to --write")
    if unknown := [name for name in flags.name if name not in names]:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(names)}")
    os.environ[QUICK] = "1" if flags.quick else ""
    for name in flags.name or names:
        start = time.perf_counter()
        try:
            execute(FOLDER / f"{name}.ipynb", write=flags.write)
        except (InputError, RunError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    return 0


def execute(path: Path, *, write: bool) -> None:
    """Execute the notebook in an empty folder, and keep its outputs in the file if `write`.

    Raises:
        InputError: the packages are missing.
        RunError: a cell failed.
    """
    try:
        import nbclient
        import nbformat
    except ImportError as error:
        raise InputError(f"{error.name} is missing; pip install 'cfmlc_jax[notebooks]'") from error
    notebook: Any = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute()
        except nbclient.exceptions.CellExecutionError as error:
            raise RunError(f"{path.name}: {error}") from error
    # Which Python ran it is of no use to a reader, and would differ each time.
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    if write:
        nbformat.write(notebook, path)


if __name__ == "__main__":
    sys.exit(main())
