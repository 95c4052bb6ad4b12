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

import nbclient
import nbformat

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
    parser.add_argument("name", nargs="*", choices=[*names, []], help="default: all")
    parser.add_argument("--quick", action="store_true", help="small budgets")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    flags = parser.parse_args(arguments)
    if flags.quick and flags.write:
        parser.error("--quick makes outputs that nobody should read; omit it to --write")
    os.environ[QUICK] = "1" if flags.quick else ""
    for name in flags.name or names:
        start = time.perf_counter()
        try:
            notebook = executed(FOLDER / f"{name}.ipynb")
        except nbclient.exceptions.CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        if flags.write:
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    return 0


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=LONGEST,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    # Which Python ran it is of no use to a reader, and would differ each time.
    notebook.metadata.pop("language_info", None)
    return notebook


if __name__ == "__main__":
    sys.exit(main())
