"""Memory and time of a training step by rematerialisation and micro-batches, as a Markdown table.

    python -m scripts.memory [--model=resnet18] [--size=64] [--batch=16] [--steps=3]
    python -m scripts.memory --model=resnet101 --size=448 --batch=8 --grid=2 --steps=0 --micro_batches=1

The step is PAT-T's by the published recipe, on all devices, with as many norm groups as the largest number of
micro-batches. Memory is the compiler's plan for a device's temporaries, without parameters, optimiser state and batch. With
--steps=0 the step is compiled and not run, so that sizes beyond this machine's memory can be asked for.
Exit codes: 0 done; 1 an error, printed in one line.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cfmlc_jax import cli
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import plan
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from scripts.benchmark import ours
from scripts.benchmark.inputs import CLASSES


class Measured(NamedTuple):
    """A row: temporaries, bytes; the time of the fastest step, seconds, or None if no step was run."""

    remat: str
    micro_batches: int
    temporaries: int
    seconds: float | None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checked flags.

    Raises:
        InputError: a flag cannot be used.
    """
    parser = cli.Parser(prog="python -m scripts.memory", description=__doc__)
    positive = cli.whole_number(1)
    parser.add_argument("--model", default="resnet18", help="a name in cfmlc_jax/models/catalogue.py")
    parser.add_argument("--size", type=positive, default=64, help="side of a view (default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=16, help="images (default: %(default)s)")
    parser.add_argument("--grid", type=positive, default=2, help="patches per side (default: %(default)s)")
    parser.add_argument("--remat", default=",".join(catalogue.REMAT), help="default: %(default)s")
    parser.add_argument("--micro_batches", default="1,4", help="numbers (default: %(default)s)")
    parser.add_argument("--dtype", choices=catalogue.DTYPES, default="float32")
    parser.add_argument("--steps", type=cli.whole_number(0), default=3, help="steps to time; 0: compile only")
    flags = parser.parse_args(arguments)
    flags.remat = flags.remat.split(",")
    unknown = set(flags.remat).difference(catalogue.REMAT)
    if unknown:
        raise InputError(
            f"--remat has {', '.join(sorted(unknown))}; give some of {','.join(catalogue.REMAT)}"
        )
    try:
        flags.micro_batches = [int(number) for number in flags.micro_batches.split(",")]
    except ValueError as error:
        raise InputError("--micro_batches must be whole numbers, separated by commas, such as 1,4") from error
    most = max(flags.micro_batches)
    if min(flags.micro_batches) < 1 or any(most % number for number in flags.micro_batches):
        raise InputError(
            f"--micro_batches has numbers that do not divide its largest, {most}; give 1,2,4, for instance"
        )
    unit = most * jax.device_count()
    if flags.batch % unit:
        raise InputError(
            f"--batch {flags.batch} is not divisible by {most} micro-batches on {jax.device_count()} devices; "
            f"try {-(-flags.batch // unit) * unit}"
        )
    return flags


def measure(flags: argparse.Namespace, remat: str, micro_batches: int) -> Measured:
    """The plan of one compiled step, and its time."""
    groups = max(flags.micro_batches)
    fields = catalogue.Model(flags.model, dtype=flags.dtype, remat=remat, norm_groups=groups)
    model = catalogue.create(fields, CLASSES, flags.size, catalogue.Patches(), micro_batches)
    shape = (1 + flags.grid**2, flags.size, flags.size, 3)
    system = ours.system(flags, model, micro_batches=micro_batches, norm_groups=groups)
    mesh = meshes.create()
    create, abstract = plan(system, seed=0, mesh=mesh)
    step = TrainStep(system, abstract, seed=0, log_every=50, mesh=mesh)
    split = meshes.batch_sharding(mesh)
    shapes = {
        "views": jax.ShapeDtypeStruct((flags.batch, *shape), np.uint8, sharding=split),
        "labels": jax.ShapeDtypeStruct((flags.batch, CLASSES), np.float32, sharding=split),
    }
    compiled = step.jitted.lower(abstract, shapes).compile()
    analysis: Any = compiled.memory_analysis()
    temporaries = analysis.temp_size_in_bytes
    return Measured(remat, micro_batches, temporaries, _fastest(flags.steps, compiled, create, shapes))


def _fastest(steps: int, compiled: Callable[..., Any], create: Callable[[], Any], shapes) -> float | None:
    if not steps:
        return None
    rng = np.random.default_rng(0)
    batch = jax.tree.map(
        lambda leaf: jax.device_put(rng.integers(0, 2, leaf.shape).astype(leaf.dtype), leaf.sharding), shapes
    )
    state, _ = jax.block_until_ready(compiled(create(), batch))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - start)
    return min(times)


def table(rows: Sequence[Measured], batch: int) -> str:
    """The Markdown table, for a number of images on each device."""
    lines = ["| remat | micro-batches | MB an image | temporaries, GB | time of a step, s |", "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.2f}"
        per_image = f"{row.temporaries / batch / 1e6:.1f}"
        lines.append(
            f"| {row.remat} | {row.micro_batches} | {per_image} | {row.temporaries / 1e9:.2f} | {seconds} |"
        )
    return "\n".join(lines)


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    flags = parse(arguments)
    rows = []
    for micro_batches in flags.micro_batches:
        for remat in flags.remat:
            rows.append(measure(flags, remat, micro_batches))
            print(rows[-1], file=sys.stderr, flush=True)
    views = f"{flags.batch} images of {1 + flags.grid**2} views of {flags.size} px"
    print(f"\n{flags.model}, {views}, {flags.dtype}, {jax.devices()[0].device_kind}\n")
    print(table(rows, flags.batch // jax.device_count()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
