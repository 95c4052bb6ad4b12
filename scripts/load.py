"""Predicts many pictures with a checkpoint of random weights, and prints time, memory and counts.

    python -m scripts.load [--pictures=10000] [--broken=50] [--classes=32] [--grid=2] [--side=64] [--batch_size=64]
    python -m scripts.load --pictures=4 --broken=0 --side=9400        # photos of 88 megapixels

The pictures are of all kinds that are read, in folders of a hundred; the broken ones are truncated, empty, text, or claim
a size that is refused. `python -m cfmlc_jax.predict` reads them in a process of its own. The last lines are a row of a
Markdown table and its head.
Exit codes: 0 every picture was predicted or reported, as it should be; 1 it was not, or another error.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import cli
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build
from cfmlc_jax.config import shipped
from cfmlc_jax.data.views.decode import MAX_PIXELS
from cfmlc_jax.errors import InputError, RunError, printable

KINDS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "PPM": "ppm", "TIFF": "tif", "WEBP": "webp"}
_DIFFERENT = 5  # pictures of a kind; the others are copies under other names
_LARGE = 4000  # sides above: JPEG alone, because other kinds take gigabytes


class Load(NamedTuple):
    """What was predicted: how many pictures, how many broken; seconds; the process's peak memory, bytes."""

    pictures: int
    broken: int
    seconds: float
    peak: int


def write_pictures(folder: Path, count: int, broken: int, side: int) -> tuple[list[str], list[str]]:
    """The paths of so many pictures, which are written in folders of a hundred: the good ones, and the broken ones.

    Args:
        folder: an empty folder.
        count: all pictures.
        broken: how many of them cannot be read, spread evenly.
        side: width of the others, pixels; their height is the same or a fifth less.
    """
    good = list(_pictures(side))
    bad = _broken()
    every = count // broken if broken else count + 1
    written: tuple[list[str], list[str]] = [], []
    for number in range(count):
        if number % 100 == 0:
            place = folder / f"{number // 100:04d}"
            place.mkdir(parents=True)
        is_broken = bool(broken) and number % every == every - 1 and number // every < broken
        suffix, data = bad[number // every % len(bad)] if is_broken else good[number % len(good)]
        path = place / f"{number:06d}.{suffix}"
        path.write_bytes(data)
        written[is_broken].append(str(path))
    return written


def _pictures(side: int) -> Iterable[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    large = side > _LARGE
    for number in range(1 if large else _DIFFERENT):
        size = (side, side - side // 5 * (number % 2))
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(size)
        for kind, suffix in (("JPEG", "jpg"),) if large else KINDS.items():
            file = io.BytesIO()
            picture.save(file, kind)
            yield suffix, file.getvalue()


def _broken() -> list[tuple[str, bytes]]:
    """A file of each way to be broken."""
    (_, jpeg), (_, png) = list(_pictures(64))[:2]
    bomb = bytearray(png)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    return [
        ("jpg", jpeg[: len(jpeg) // 2]),
        ("png", b""),
        ("gif", b"no picture\n"),
        ("png", bytes(bomb)),
        ("webp", jpeg[:20]),
    ]


def write_checkpoint(path: Path, classes: int, grid: int) -> None:
    """Write a small classifier of so many classes, with grid x grid patches and random weights.

    Raises:
        InputError: the configuration does not allow that.
    """
    config = configs.replaced(
        configs.validate(shipped.get_config("scenes:smoke")),
        {"views.image_size": 64 if grid < 8 else 176, "patches.grids": [grid]},
    )
    config = configs.on_platform(config, jax.default_backend())
    model = build.initial(config, build.create(config, classes))
    names = [f"class {number:04d}" for number in range(classes)]
    meta = {"config": configs.to_json(config), "class_names": names, "num_classes": classes}
    checkpoints.write(path, model=model, meta=meta)


def predict(
    folder: Path, checkpoint: Path, output: Path, batch_size: int, good: Sequence[str], broken: Sequence[str]
) -> Load:
    """What the command used for a folder of pictures.

    Args:
        folder: of the pictures.
        checkpoint: that predicts them.
        output: a new file for the predictions.
        batch_size: pictures at once.
        good: the paths that are to be predicted, once each.
        broken: the paths that are to be reported, once each.

    Raises:
        RunError: exit code, counts or files differ from what they should be.
    """
    command = [sys.executable, "-m", "cfmlc_jax.predict", f"--checkpoint={checkpoint}", f"--output={output}"]
    options = ["--format=jsonl", "--top=3", f"--batch_size={batch_size}", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    with process.stderr as stream:
        lines = stream.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    code = process.returncode = os.waitstatus_to_exitcode(status)
    summary = f"{len(good)} predicted, {len(broken)} skipped"
    reports = [line.removeprefix("skipped: ") for line in lines if line.startswith("skipped: ")]
    if code != bool(broken) or not lines or summary not in lines[-1] or len(reports) != len(broken):
        last = printable(lines[-1]) if lines else "nothing"
        raise RunError(
            f"predict ended with {code}, {len(reports)} reports and {last!r}, wanted {summary!r}; run it by hand on {folder}"
        )
    with output.open(encoding="utf-8") as file:
        predicted = [json.loads(line)["file"] for line in file]
    _require_same("predicted", predicted, good, folder)
    _require_same("reported", [report.partition(": ")[0] for report in reports], broken, folder)
    return Load(len(good) + len(broken), len(broken), seconds, 1024 * usage.ru_maxrss)


def _require_same(what, names, wanted, folder):
    """Raise unless the names are the wanted ones, each as often, in any order."""
    found, expected = Counter(names), Counter(wanted)
    differing = sorted(name for name in found.keys() | expected.keys() if found[name] != expected[name])
    if differing:
        name = differing[0]
        raise RunError(
            f"{name} was {what} {found[name]} times, wanted {expected[name]}; run it by hand on {folder}"
        )


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    _run(_parse(arguments))
    return 0


def _parse(arguments) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m scripts.load", description=__doc__)
    positive = cli.whole_number(1)
    parser.add_argument("--pictures", type=positive, default=10_000, help="default: %(default)s")
    parser.add_argument(
        "--broken", type=cli.whole_number(0), default=50, help="of them (default: %(default)s)"
    )
    parser.add_argument("--classes", type=positive, default=32, help="default: %(default)s")
    parser.add_argument("--grid", type=positive, default=2, help="patches per side (default: %(default)s)")
    parser.add_argument("--side", type=positive, default=64, help="of a picture (default: %(default)s)")
    parser.add_argument("--batch_size", type=positive, default=64, help="default: %(default)s")
    flags = parser.parse_args(arguments)
    if flags.broken > flags.pictures:
        raise InputError(f"--broken={flags.broken} is more than --pictures={flags.pictures}; give fewer")
    if flags.side**2 > MAX_PIXELS:
        raise InputError(
            f"--side={flags.side} is more than {MAX_PIXELS} pixels, which are refused; give less"
        )
    return flags


def _run(flags) -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        good, broken = write_pictures(folder / "pictures", flags.pictures, flags.broken, flags.side)
        write_checkpoint(folder / "checkpoint", flags.classes, flags.grid)
        load = predict(
            folder / "pictures",
            folder / "checkpoint",
            folder / "out.jsonl",
            flags.batch_size,
            good,
            broken,
        )
    print("| pictures | broken | side | classes | patches | seconds | peak memory, MB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {load.pictures:,} | {load.broken} | {flags.side:,} | {flags.classes:,} | {flags.grid**2} | {load.seconds:,.0f} "
        f"| {load.peak / 1e6:,.0f} |"
    )


if __name__ == "__main__":
    cli.end(main())
