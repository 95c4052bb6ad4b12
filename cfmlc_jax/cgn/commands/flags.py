"""Flags and output that several commands share."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from cfmlc_jax import cli, files
from cfmlc_jax.buckets import Address
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.split import WEIGHTS


def add_classifier(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """Add the flags of a command that asks a classifier."""
    parser.add_argument(
        "--checkpoint",
        type=files.any_path,
        required=True,
        metavar="RUN",
        help="a run of a classifier, or one step of it",
    )
    parser.add_argument(
        "--weights",
        choices=tuple(WEIGHTS),
        default="average",
        help="raw weights, or their moving average (default)",
    )
    parser.add_argument(
        "--batch-size",
        type=cli.whole_number(1),
        default=batch_size,
        metavar="N",
        help=f"images at once, rounded up to a multiple of the devices; default {batch_size}",
    )


def add_generator(parser: argparse.ArgumentParser) -> None:
    """Add the flag of a command that draws with a generator."""
    parser.add_argument(
        "--checkpoint",
        type=files.any_path,
        required=True,
        metavar="RUN",
        help="a run of a generator, or one step of it",
    )


def add_image_size(parser: argparse.ArgumentParser) -> None:
    """Add the flag of the views' size."""
    parser.add_argument(
        "--image-size",
        type=cli.whole_number(1),
        metavar="N",
        help="side of the views, pixels; default the checkpoint's",
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the flag of a file for the results."""
    parser.add_argument(
        "--out", type=files.any_path, metavar="FILE", help="also write the results there, as JSON"
    )


def require_writable(out: Path | None) -> None:
    """Raise unless the file of --out can be written to its folder.

    Raises:
        InputError: the folder does not exist, or the path is one.
    """
    if out is None:
        return
    if isinstance(out, Address) and not out.is_dir():
        return
    if out.is_dir() or not out.absolute().parent.is_dir():
        state = "is a folder" if out.is_dir() else f"would be in {out.parent}, which is not a folder"
        raise InputError(f"--out {out} {state}; give a file in a folder that exists")


def write(out: Path | None, results: dict[str, Any]) -> None:
    """Write results as JSON; NaN becomes null."""
    if out is not None:
        files.write_text(out, json.dumps(_without_nan(results), indent=1, allow_nan=False) + "\n")


def _without_nan(value):
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
