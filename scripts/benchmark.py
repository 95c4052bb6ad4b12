"""Times a training step, a forward pass and the input pipeline; PyTorch does the same where it is installed.

    python scripts/benchmark.py [--model=resnet101] [--only=train,forward,input] [--json=FILE]

Every measurement runs in a process of its own, which tells its peak memory. Ours and PyTorch's
take turns, run by run: the speed of a shared machine drifts by more than they differ. Ratios are
of the fastest runs. The matrix product says what the machine could do at best.
Exit codes: 0 done; 1 an error, told in one line.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from cfmlc_jax import command
from cfmlc_jax.errors import InputError, RunError

MEASUREMENTS = ("train", "forward", "input")
CLASSES = 80
PHOTOS = 64  # generated, where --images names none
PHOTO_SIZE = (640, 480)
SUFFIXES = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Work:
    """What a process measures.

    run: does it once; returns the units done (steps, images) and their seconds.
    flops: floating-point operations of a unit, 0 where there are none to speak of.
    device, platform: what computes, in JAX's words.
    peak: bytes of the device's memory at most so far; None: the process's memory.
    """

    run: Callable[[], tuple[int, float]]
    flops: float = 0.0
    device: str = "cpu"
    platform: str = "cpu"
    peak: Callable[[], int] | None = None


@dataclass
class Result:
    """One measurement by one framework: seconds per unit of every run, and peak memory in MB."""

    name: str
    framework: str
    flops: float
    device: str
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    @property
    def fastest(self) -> float:
        """Seconds per unit of the fastest run."""
        return min(self.seconds)


# --- What our side does -------------------------------------------------------------------------


def _timed(run: Callable[[], Any]) -> Callable[[], tuple[int, float]]:
    def once():
        start = time.perf_counter()
        run()
        return 1, time.perf_counter() - start

    return once


def _jax_work(run, flops) -> Work:
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats()
    peak = None if not stats else lambda: device.memory_stats()["peak_bytes_in_use"]
    return Work(
        _timed(lambda: jax.block_until_ready(run())), flops, device.device_kind, device.platform, peak
    )


def _jax_matmul(flags) -> Work:
    import jax

    side = matmul_side(jax.default_backend())
    matrix = jax.numpy.asarray(_matrix(side))
    product = jax.jit(lambda a: a @ a)
    return _jax_work(lambda: product(matrix), 2.0 * side**3)


def _jax_model(flags):
    import jax

    from cfmlc_jax.loop import mesh as meshes
    from cfmlc_jax.models import build

    mesh = meshes.create()
    meshes.check_batch("batch_size", flags.batch)
    dtype = jax.numpy.dtype(flags.dtype)
    model = build.create(flags.model, CLASSES, attention="cross", image_size=flags.size, dtype=dtype)
    return model, mesh


def _jax_state(flags, model, mesh):
    import jax

    from cfmlc_jax.loop import method as methods
    from cfmlc_jax.loop import state, step
    from cfmlc_jax.optim import build

    method = methods.create("pat_t", gamma_neg=4.0, gamma_pos=0.0, clip=0.05)
    optimizer = build.adamw_one_cycle(max_lr=1e-4, total_steps=1000)
    shape = (1, 1 + flags.grid**2, flags.size, flags.size, 3)
    tallied = step.tallied(method.loss_names)
    born, abstract = state.plan(model, optimizer, shape, tallied=tallied, seed=0, mesh=mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    update = step.train_step(
        model, optimizer, method, ema_decay=0.9997, log_every=50, seed=0, mesh=mesh, shardings=shardings
    )
    return born(), update


def _jax_train(flags) -> Work:
    from cfmlc_jax.loop import mesh as meshes

    model, mesh = _jax_model(flags)
    state, update = _jax_state(flags, model, mesh)
    views, labels = batch(flags)
    on_device = meshes.to_devices({"views": views, "labels": labels}, mesh)
    flops = update.lower(state, on_device).cost_analysis()["flops"]

    def run():
        nonlocal state
        state, first_bad = update(state, on_device)
        return state, first_bad

    return _jax_work(run, flops)


def _jax_forward(flags) -> Work:
    from cfmlc_jax.loop import mesh as meshes
    from cfmlc_jax.loop import method as methods
    from cfmlc_jax.loop import step

    model, mesh = _jax_model(flags)
    state, _ = _jax_state(flags, model, mesh)
    method = methods.create("pat_t", gamma_neg=4.0, gamma_pos=0.0, clip=0.05)
    patches = methods.Patches(flags.grid)
    score = step.score_step(model, method, kinds=(), null="mean", patches=patches, mesh=mesh)
    views = meshes.to_devices(batch(flags)[0], mesh)
    arguments = state.variables, state.mean_colour, views
    cost: Any = score.lower(*arguments).cost_analysis()
    return _jax_work(lambda: score(*arguments), cost["flops"])


def _jax_input(flags) -> Work:
    from absl import flags as absl_flags

    from cfmlc_jax.data.pipeline import Reading, train_batches
    from cfmlc_jax.data.sources.files import FileSource
    from cfmlc_jax.data.transforms import ToViews

    absl_flags.FLAGS.mark_as_parsed()  # Grain reads its own flags' defaults there
    paths = photos_in(Path(flags.images))
    source = FileSource(
        root=Path(flags.images),
        split="train",
        paths=[path.name for path in paths],
        ids=[path.stem for path in paths],
        labels=_labels(len(paths)).astype(np.uint8),
        class_names=tuple(str(k) for k in range(CLASSES)),
    )
    batches = train_batches(
        source,
        ToViews(flags.size, flags.grid, augment=True),
        batch_size=flags.batch,
        epochs=epochs_of(flags, len(paths)),
        seed=0,
        reading=Reading(threads=flags.threads, workers=flags.workers),
    )
    return Work(lambda: images_per_time(iter(batches), flags))


# --- What PyTorch does --------------------------------------------------------------------------


def _torch_work(run, flops, flags) -> Work:
    import torch

    cuda = flags.torch_device == "cuda"

    def synchronous():
        run()
        if cuda:
            torch.cuda.synchronize()

    return Work(
        _timed(synchronous),
        flops,
        torch.cuda.get_device_name() if cuda else "cpu",
        flags.torch_device,
        torch.cuda.max_memory_allocated if cuda else None,
    )


def _torch_matmul(flags) -> Work:
    import torch

    side = matmul_side("gpu" if flags.torch_device == "cuda" else "cpu")
    matrix = torch.from_numpy(_matrix(side)).to(flags.torch_device)
    return _torch_work(lambda: matrix @ matrix, 2.0 * side**3, flags)


def _torch_train(flags) -> Work:
    import benchmark_torch

    training = benchmark_torch.Training(flags.model, *batch(flags), device=flags.torch_device)
    return _torch_work(training.run, 0.0, flags)


def _torch_forward(flags) -> Work:
    import benchmark_torch

    views, _ = batch(flags)
    forward = benchmark_torch.Forward(flags.model, views, CLASSES, device=flags.torch_device)
    return _torch_work(forward.run, 0.0, flags)


def _torch_input(flags) -> Work:
    import benchmark_torch

    paths = photos_in(Path(flags.images))
    paths *= epochs_of(flags, len(paths))
    loader = benchmark_torch.batches(
        paths,
        size=flags.size,
        grid=flags.grid,
        labels=_labels(len(paths)),
        batch_size=flags.batch,
        workers=flags.workers,
    )
    return Work(lambda: images_per_time(iter(loader), flags))


WORKS: dict[tuple[str, str], Callable[[argparse.Namespace], Work]] = {
    ("jax", "matmul"): _jax_matmul,
    ("jax", "train"): _jax_train,
    ("jax", "forward"): _jax_forward,
    ("jax", "input"): _jax_input,
    ("torch", "matmul"): _torch_matmul,
    ("torch", "train"): _torch_train,
    ("torch", "forward"): _torch_forward,
    ("torch", "input"): _torch_input,
}


# --- What both work on --------------------------------------------------------------------------


def matmul_side(platform: str) -> int:
    """Side of the square matrices that show a platform's best."""
    return 2048 if platform == "cpu" else 8192


def _matrix(side):
    return np.random.default_rng(0).standard_normal((side, side), np.float32)


def batch(flags) -> tuple[np.ndarray, np.ndarray]:
    """A batch of noise: views uint8 [b, v, s, s, 3], labels float32 [b, k]."""
    shape = (flags.batch, 1 + flags.grid**2, flags.size, flags.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8), _labels(flags.batch)


def _labels(count):
    return (np.random.default_rng(1).random((count, CLASSES)) < 0.04).astype(np.float32)


def photos_in(folder: Path) -> list[Path]:
    """The folder's JPEG files, by name.

    Raises:
        InputError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"--images={folder} is not a folder; name one of JPEG photos or leave the flag out")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(
            f"--images={folder} has no file {' or '.join(SUFFIXES)}; name a folder of JPEG photos"
        )
    return paths


def write_photos(folder: Path, count: int) -> None:
    """Writes `count` JPEG files of photo-like spectrum: `PHOTO_SIZE`, of the bytes and decoding time of COCO's."""
    for i in range(count):
        photo(np.random.default_rng(i)).save(folder / f"{i:04d}.jpg", quality=95)


def photo(generator: np.random.Generator) -> Image.Image:
    """A picture [480, 640, 3] of noise whose amplitude falls with every octave, like a photo's."""
    width, height = PHOTO_SIZE
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 10):
        shape = (2**octave * height // width, 2**octave, 3)
        noise = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        smooth = np.asarray(noise.resize(PHOTO_SIZE, Image.Resampling.BICUBIC), np.float32)
        total += (smooth - 127.5) * 0.6 ** (octave - 2)
    return Image.fromarray(np.clip(total + 127.5, 0, 255).astype(np.uint8))


def warm_up(flags) -> int:
    """Images that an input pipeline gives before it is timed: more than its buffers hold."""
    return 32 * max(flags.workers, 1)


def epochs_of(flags, photos: int) -> int:
    """Passes over the photos that one timing of the input needs."""
    per_epoch = photos // flags.batch * flags.batch
    if not per_epoch:
        raise InputError(f"--images has {photos} photos, fewer than --batch={flags.batch}; lower --batch")
    return -(-(warm_up(flags) + flags.input_images + flags.batch) // per_epoch)


def images_per_time(batches: Iterable, flags) -> tuple[int, float]:
    """Images of a warm pipeline and the seconds they took; at least --input_images of them."""
    iterator = iter(batches)
    for _ in range(-(-warm_up(flags) // flags.batch)):
        next(iterator)
    steps = -(-flags.input_images // flags.batch)
    start = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return steps * flags.batch, time.perf_counter() - start


# --- Processes that take turns ------------------------------------------------------------------


def serve(flags) -> None:
    """A worker's life: make ready, warm up, then one run for every line on stdin; JSON lines on stdout."""
    framework, name = flags.worker.split(":")
    work = WORKS[framework, name](flags)
    if name != "input":  # which warms up by itself
        work.run()
    _say({"flops": work.flops, "device": work.device, "platform": work.platform})
    for _ in sys.stdin:
        units, seconds = work.run()
        _say({"seconds": seconds / units})
    _say({"peak_mb": (work.peak() if work.peak else _process_memory(flags)) / 1e6})


def _say(message):
    print(json.dumps(message), flush=True)


def _process_memory(flags):
    """Bytes of this process and its workers at their peaks."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return unit * (own + (flags.workers * largest_child if flags.worker.endswith("input") else 0))


class Worker:
    """A process that does one measurement when told to; a context, at whose end it is gone."""

    def __init__(self, framework: str, name: str, arguments: Sequence[str]):
        self._name = f"{framework} {name}"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the context's end
        command = [sys.executable, __file__, *arguments, f"--worker={framework}:{name}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout, self._errors):
            stream.close()

    def ready(self) -> dict[str, Any]:
        """Waits until all is compiled and warm; "flops", "device", "platform" of the work."""
        return self._answer()

    def run(self) -> float:
        """Seconds per unit of one more run."""
        self._stdin.write("run\n")
        self._stdin.flush()
        return self._answer()["seconds"]

    def end(self) -> float:
        """Peak memory in MB, of a worker that is done."""
        self._stdin.close()
        return self._answer()["peak_mb"]

    def _answer(self):
        line = self._stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or ["no message"]
        raise RunError(f"the measurement {self._name} ended with code {code}: {last[0]}")


def measure(name: str, flags, arguments: Sequence[str]) -> list[Result]:
    """Results of one measurement, ours first, then PyTorch's if it takes part; runs alternate."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker("jax", name, arguments))]
        ready = workers[0].ready()
        results = [Result(name, "jax", ready["flops"], ready["device"])]
        torch_device = {"cpu": "cpu", "gpu": "cuda"}.get(ready["platform"])
        if flags.peer == "torch" and torch_device and (flags.dtype == "float32" or name == "input"):
            peer = Worker("torch", name, [*arguments, f"--torch_device={torch_device}"])
            workers.append(stack.enter_context(peer))
            # The same work, whatever each side's compiler makes of it.
            results.append(Result(name, "torch", ready["flops"], peer.ready()["device"]))
        for _ in range(flags.repeats):
            for worker, result in zip(workers, results):
                result.seconds.append(worker.run())
        for worker, result in zip(workers, results):
            result.peak_mb = worker.end()
    return results


# --- What is told -------------------------------------------------------------------------------


def rows(results: Sequence[Result]) -> list[tuple[str, list[float]]]:
    """Lines of the table: what is measured, and its values, ours first."""
    name, flops = results[0].name, results[0].flops
    fastest = [result.fastest for result in results]
    medians = [statistics.median(result.seconds) for result in results]
    memory = (f"{name}, peak memory, MB", [result.peak_mb for result in results])
    rate = ("GF/s", [flops / seconds / 1e9 for seconds in fastest])
    if name == "matmul":
        return [(f"matrix product, {rate[0]}", rate[1])]
    if name == "input":
        return [
            ("input, images/s", [1 / seconds for seconds in fastest]),
            ("input, median, images/s", [1 / seconds for seconds in medians]),
            memory,
        ]
    return [(f"{name}, s", fastest), (f"{name}, median, s", medians), (f"{name}, {rate[0]}", rate[1]), memory]


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
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"--json={path} cannot be written ({error.strerror}); name a file in a folder"
        ) from error


# --- The command --------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; see --help")


def _positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "number above 0"  # argparse names the type in its message


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked.

    Raises:
        InputError: a flag that cannot be used.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="of train, forward, input")
    parser.add_argument("--model", default="resnet101", help="a name in cfmlc_jax/models/build.py")
    parser.add_argument("--batch", type=_positive, default=4, help="images (default: %(default)s)")
    parser.add_argument("--size", type=_positive, default=224, help="side of a view (default: %(default)s)")
    parser.add_argument("--grid", type=_positive, default=2, help="patches a side (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our model")
    parser.add_argument("--repeats", type=_positive, default=5, help="runs (default: %(default)s)")
    parser.add_argument("--images", default="", help="folder of JPEG photos; default: generated ones")
    parser.add_argument("--input_images", type=_positive, default=128, help="images in a run of input")
    parser.add_argument("--workers", type=_positive, default=min(2, os.cpu_count() or 1), help="of input")
    parser.add_argument("--threads", type=_positive, default=1, help="in each of our input's workers")
    parser.add_argument("--peer", choices=("auto", "torch", "none"), default="auto", help="measure PyTorch?")
    parser.add_argument("--json", default="", help="file for settings and all runs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--torch_device", default="cpu", help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    unknown = set(flags.only.split(",")).difference(MEASUREMENTS)
    if unknown:
        raise InputError(
            f"--only has {', '.join(sorted(unknown))}; give some of {','.join(MEASUREMENTS)} with commas"
        )
    if flags.grid < 2:
        raise InputError(f"--grid {flags.grid} makes no patches; give 2 or more")
    return flags


def choose_peer(wanted: str, installed: bool) -> str:
    """ "torch" or "none".

    Raises:
        InputError: PyTorch is wanted and not installed.
    """
    if wanted == "torch" and not installed:
        raise InputError("--peer=torch needs PyTorch; pip install 'cfmlc_jax[torch]' or --peer=none")
    return "torch" if installed and wanted != "none" else "none"


def _run(flags, photos: Path) -> None:
    if flags.images:
        photos_in(Path(flags.images))
    elif "input" in flags.only:
        write_photos(photos, PHOTOS)
        flags.images = str(photos)
    arguments = [
        f"--{name}={value}" for name, value in vars(flags).items() if name not in ("worker", "torch_device")
    ]
    measured = []
    for name in ("matmul", *(name for name in MEASUREMENTS if name in flags.only.split(","))):
        measured.append(measure(name, flags, arguments))
        print(f"{name} done", file=sys.stderr, flush=True)
    views = f"{flags.batch} images of {1 + flags.grid**2} views of {flags.size} px"
    print(f"\n{flags.model}, {views}, {flags.dtype}, {measured[0][0].device}, fastest of {flags.repeats}\n")
    print(table(measured))
    if flags.json:
        write_json(Path(flags.json), flags, measured)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    command.tolerate_every_name()
    try:
        flags = parse(arguments)
        if flags.worker:
            serve(flags)
            return 0
        flags.peer = choose_peer(flags.peer, importlib.util.find_spec("torch") is not None)
        if flags.peer == "none":
            print("without PyTorch: not installed or not wanted", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            _run(flags, Path(folder))
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
