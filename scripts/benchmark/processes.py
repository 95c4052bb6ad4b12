"""Runs measurements in separate processes, ours and PyTorch's alternately."""

import contextlib
import importlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from cfmlc_jax.errors import RunError
from scripts.benchmark import inputs, memory
from scripts.benchmark.result import Result

ROOT = Path(__file__).parents[2]
MODULES = {"jax": "ours", "torch": "pytorch"}


def serve(flags) -> None:
    """Serve as a worker: prepare, warm up, then do one run for every line on stdin; JSON lines on stdout."""
    framework, name = flags.worker.split(":")
    # Each in a process of its own, which imports nothing of the other.
    works = importlib.import_module(f"scripts.benchmark.{MODULES[framework]}")
    if name in inputs.LAYERS:
        work = works.layer(name, flags)
    else:
        work = getattr(works, "reading" if name == "input" else name)(flags)
    if name != "input":  # which warms up by itself
        work.run()
    _say({"flops": work.flops, "device": work.device, "platform": work.platform})
    for _ in sys.stdin:
        units, seconds = work.run()
        _say({"seconds": seconds / units})
    _say({"peak_mb": (work.peak() if work.peak else _process_memory()) / 1e6})


def _say(message):
    print(json.dumps(message), flush=True)


def _process_memory():
    """Peak memory of this process, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Worker:
    """A process that does one measurement on request; a context manager that ends the process."""

    def __init__(self, framework: str, name: str, arguments: Sequence[str]):
        self._name = f"{framework} {name}"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the context's end
        command = [sys.executable, "-m", "scripts.benchmark", *arguments, f"--worker={framework}:{name}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT
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
        """Wait until all is compiled and warm; returns "flops", "device" and "platform" of the work."""
        return self._answer()

    def run(self) -> float:
        """Do one more run and return its seconds per unit."""
        self._stdin.write("run\n")
        self._stdin.flush()
        return self._answer()["seconds"]

    def end(self) -> float | None:
        """Ask the worker to finish and return its peak memory in MB; None if it cannot be measured here.

        The input's is that of one more run, together with the processes that the worker starts. These are forked in
        PyTorch and not in ours, so that the largest memory of each would count what they share several times.
        """
        if self._name.endswith(" input"):
            return memory.peak_during(self.run, self._process.pid) / 1e6 if memory.IS_MEASURABLE else None
        self._stdin.close()
        return self._answer()["peak_mb"]

    def _answer(self):
        line = self._stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or ["no message"]
        raise RunError(f"the measurement {self._name} ended with exit code {code}: {last[0]}")


def measure(name: str, flags, arguments: Sequence[str]) -> list[Result]:
    """Results of one measurement, ours first, then PyTorch's if it is measured; runs alternate."""
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
