"""Measurements as a Markdown table, and as a JSON file."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cfmlc_jax import files
from cfmlc_jax.errors import InputError
from scripts.benchmark.result import Result


def rows(results: Sequence[Result]) -> list[tuple[str, list[float]]]:
    """Lines of the table: what is measured, and its values, ours first."""
    name, flops = results[0].name, results[0].flops
    fastest = [result.fastest for result in results]
    medians = [statistics.median(result.seconds) for result in results]
    peaks = [result.peak_mb for result in results if result.peak_mb is not None]
    memory = [(f"{name}, peak memory, MB", peaks)] if len(peaks) == len(results) else []
    rate = ("GF/s", [flops / seconds / 1e9 for seconds in fastest])
    if name == "matmul":
        return [(f"matrix product, {rate[0]}", rate[1])]
    if name == "input":
        return [
            ("input, images/s", [1 / seconds for seconds in fastest]),
            ("input, median, images/s", [1 / seconds for seconds in medians]),
            *memory,
        ]
    lines = [(f"{name}, s", fastest), (f"{name}, median, s", medians)]
    return [*lines, *([(f"{name}, {rate[0]}", rate[1])] if flops else []), *memory]


def table(measured: Sequence[Sequence[Result]]) -> str:
    """Markdown: a line per quantity; with PyTorch, its value and the ratio ours / PyTorch."""
    with_peer = any(len(results) > 1 for results in measured)
    heads = ["", "cfmlc_jax", *(["PyTorch", "ratio"] if with_peer else [])]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for results in measured:
        for what, values in rows(results):
            cells = [_number(value) for value in values]
            if with_peer:
                cells = [*cells, f"{values[0] / values[1]:.2f}"] if len(values) > 1 else [*cells, "", ""]
            lines.append("| " + " | ".join([what, *cells]) + " |")
    return "\n".join(lines)


def _number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_json(path: Path, flags, measured: Sequence[Sequence[Result]]) -> None:
    """Settings and every run's seconds, as JSON.

    Raises:
        InputError: a path that cannot be written.
    """
    settings = {name: value for name, value in vars(flags).items() if name not in ("worker", "torch_device")}
    document = {"settings": settings, "results": [asdict(result) for group in measured for result in group]}
    try:
        files.write_text(path, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise InputError(
            f"--json={path} cannot be written ({error.strerror}); give a file in an existing folder"
        ) from error
