"""The commands that an installation brings, each the same as a `python -m cfmlc_jax.…`.

pyproject.toml names the functions. They run a module as Python itself does with -m, so that both forms agree in
everything: what is done before slow imports, where modules of the user are looked for, how workers are started.
"""

import functools
import os
import runpy
import sys

COMMANDS = {
    "cfmlc-train": "cfmlc_jax.main",
    "cfmlc-predict": "cfmlc_jax.predict",
    "cfmlc-report": "cfmlc_jax.report",
    "cfmlc-weights": "cfmlc_jax.weights",
    "cfmlc-export": "cfmlc_jax.export",
    "cfmlc-convert": "cfmlc_jax.torch_weights",
    "cfmlc-cgn": "cfmlc_jax.cgn",
    "cfmlc-data": "cfmlc_jax.data",
}

_started: list[str] = []


def start(command: str) -> None:
    """Run a command, a key of `COMMANDS`, with the arguments of this process."""
    _started.append(command)
    if not sys.flags.safe_path:
        sys.path.insert(
            0, os.getcwd()
        )  # as -m does: report.writers and configurations import modules from there
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


train = functools.partial(start, "cfmlc-train")
predict = functools.partial(start, "cfmlc-predict")
report = functools.partial(start, "cfmlc-report")
weights = functools.partial(start, "cfmlc-weights")
export = functools.partial(start, "cfmlc-export")
convert = functools.partial(start, "cfmlc-convert")
cgn = functools.partial(start, "cfmlc-cgn")
data = functools.partial(start, "cfmlc-data")


def as_started(text: str) -> str:
    """A text of help, with the names of commands in the form in which this process was started."""
    if _started:
        for command, module in COMMANDS.items():
            text = text.replace(f"python -m {module}", command)
    return text
