"""Times a training step, a forward pass and the input pipeline, and the same in PyTorch if it is installed.

    python -m scripts.benchmark [--model=resnet101] [--only=train,forward,input,layers] [--json=FILE]

"layers" are gradients of single layers: TResNet's blur, squeeze-and-excitation, depthwise convolution and the head of
Query2Label. Models that the benchmark does not write in PyTorch itself are taken from timm, if that is installed.
Every measurement runs in a separate process, whose peak memory is reported; the input's is that of its worker processes
too, where pages that they share are counted once (on Linux; it is left out elsewhere). Our runs and PyTorch's
alternate, because the speed of a shared machine varies by more than they differ. Ratios are
those of the fastest runs. The matrix product shows the machine's peak performance.
Exit codes: 0 done; 1 an error, printed in one line.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cfmlc_jax import cli, files
from cfmlc_jax.errors import InputError
from scripts.benchmark import inputs, processes, tables

MEASUREMENTS = ("train", "forward", "input", "layers")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checked flags.

    Raises:
        InputError: a flag cannot be used.
    """
    parser = cli.Parser(prog="python -m scripts.benchmark", description=__doc__)
    positive = cli.whole_number(1)
    parser.add_argument(
        "--only",
        default="train,forward,input",
        help=f"measurements to run, of {', '.join(MEASUREMENTS)} (default: %(default)s)",
    )
    parser.add_argument("--model", default="resnet101", help="a name in cfmlc_jax/models/catalogue.py")
    parser.add_argument("--batch", type=positive, default=4, help="images (default: %(default)s)")
    parser.add_argument("--size", type=positive, default=224, help="side of a view (default: %(default)s)")
    parser.add_argument("--grid", type=positive, default=2, help="patches per side (default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="our model's type"
    )
    parser.add_argument("--repeats", type=positive, default=5, help="runs (default: %(default)s)")
    parser.add_argument("--images", default="", help="folder of JPEG photos; default: generated ones")
    parser.add_argument("--input_images", type=positive, default=128, help="images per run of the input")
    parser.add_argument(
        "--workers", type=positive, default=min(2, os.cpu_count() or 1), help="worker processes of the input"
    )
    parser.add_argument("--threads", type=positive, default=1, help="threads in each of our input's workers")
    parser.add_argument(
        "--peer", choices=("auto", "torch", "none"), default="auto", help="whether to measure PyTorch too"
    )
    parser.add_argument("--json", default="", help="file to which settings and all runs are written")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--torch_device", default="cpu", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    for name in ("images", "json"):
        files.require_path(getattr(flags, name), f"--{name}")
    if flags.images:
        flags.images = str(
            Path(flags.images).absolute()
        )  # the measuring processes have another working folder
    unknown = set(flags.only.split(",")).difference(MEASUREMENTS)
    if unknown:
        raise InputError(
            f"--only has {', '.join(sorted(unknown))}; give some of {','.join(MEASUREMENTS)}, separated by commas"
        )
    if flags.grid < 2:
        raise InputError(f"--grid {flags.grid} makes no patches; give 2 or more")
    return flags


def choose_peer(wanted: str, installed: bool) -> str:
    """The framework to compare with: "torch" or "none".

    Raises:
        InputError: PyTorch is wanted and not installed.
    """
    if wanted == "torch" and not installed:
        raise InputError("--peer=torch needs PyTorch; pip install 'cfmlc_jax[torch]' or --peer=none")
    return "torch" if installed and wanted != "none" else "none"


def _run(flags, photos: Path) -> None:
    if flags.images:
        inputs.photos_in(Path(flags.images))
    elif "input" in flags.only:
        inputs.write_photos(photos, inputs.PHOTOS)
        flags.images = str(photos)
    arguments = [
        f"--{name}={value}" for name, value in vars(flags).items() if name not in ("worker", "torch_device")
    ]
    measured = []
    chosen = [name for name in MEASUREMENTS if name in flags.only.split(",")]
    names = [each for name in chosen for each in (inputs.LAYERS if name == "layers" else (name,))]
    for name in ("matmul", *names):
        measured.append(processes.measure(name, flags, arguments))
        print(f"{name} done", file=sys.stderr, flush=True)
    views = f"{flags.batch} images of {1 + flags.grid**2} views of {flags.size} px"
    print(f"\n{flags.model}, {views}, {flags.dtype}, {measured[0][0].device}, fastest of {flags.repeats}\n")
    print(tables.table(measured))
    if flags.json:
        tables.write_json(Path(flags.json), flags, measured)


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    flags = parse(arguments)
    if flags.worker:
        processes.serve(flags)
        return 0
    flags.peer = choose_peer(flags.peer, importlib.util.find_spec("torch") is not None)
    if flags.peer == "none":
        print("without PyTorch: not installed or not wanted", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        _run(flags, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
