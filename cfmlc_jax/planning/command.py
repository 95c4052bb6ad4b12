"""Plans a run: compiles its programs on abstract arrays, and prints what they need."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.cgn import plan as cgn
from cfmlc_jax.cgn.imagenet import plan as imagenet
from cfmlc_jax.classify import plan as classifier
from cfmlc_jax.data import sizes
from cfmlc_jax.engine.plan import TRAINING, Costs, Workload, measure
from cfmlc_jax.errors import InputError
from cfmlc_jax.planning import fitting, text, topology


class Question(NamedTuple):
    """What the user asks, by the flags of the command.

    plan_for: the devices (`topology.devices`).
    memory: bytes of a device that the run should fit into; None: do not search.
    classes, images: of the training data, if they are not known without it.
    images_per_second: rate for the hours.
    out: file for the same in JSON; None: none.
    """

    plan_for: str | None = None
    memory: int | None = None
    classes: int | None = None
    images: int | None = None
    images_per_second: float | None = None
    out: Path | None = None


def plan(config, question: Question, print_line: Callable[[str], None]) -> dict[str, Any]:
    """Print the plan of a configuration; the same as JSON values.

    Args:
        config: validated.
        question: what to plan for.
        print_line: prints a line for the user.

    Raises:
        InputError: the configuration does not work on these devices, or the number of classes is unknown.
    """
    devices = topology.devices(question.plan_for)
    workload = _workload(config, question, devices)
    for line in text.head(workload, question.images_per_second):
        print_line(line)
    costs = {}
    for name, program in workload.programs.items():
        costs[name] = measure(program)
        for line in text.program(name, program.about, costs[name]):
            print_line(line)
    fits = {}
    if question.memory is not None:
        fits = _fit(config, question, devices, costs, print_line)
    answer = _as_json(workload, costs, fits, question)
    if question.out is not None:
        files.write_text(question.out, json.dumps(answer, indent=1) + "\n")
    return answer


def _workload(config, question: Question, devices: Sequence[jax.Device]) -> Workload:
    system = configs.system(config)
    if system == configs.CGN_IMAGENET:
        return imagenet.workload(config, devices)
    size = sizes.size(config.data, classes=question.classes, images=question.images)
    plans = {configs.CLASSIFIER: classifier.workload, configs.CGN: cgn.workload}
    return plans[system](config, size, devices)


# Program -> the field whose value decides how many images are in memory at once.
_BATCHES = {
    TRAINING: "train.batch_size",
    classifier.VALIDATION: "evaluate.batch_size",
    classifier.EVALUATION: "evaluate.batch_size",
}


def _fit(config, question, devices, costs: dict[str, Costs], print_line) -> dict[str, Any]:
    """The largest batches that fit into the memory asked for, by field; prints them."""
    limit, fits = question.memory, {}
    for name, found in costs.items():
        field = _batch_field(config, name)
        start = f"{name}: {text.shown_bytes(found.memory.peak)} on each device"
        if found.memory.peak <= limit:
            print_line(f"{start} fits into {text.shown_bytes(limit)}")
            continue
        candidates = _candidates(config, field, devices)
        print_line(f"{start} does not fit into {text.shown_bytes(limit)}; trying smaller {field}")

        def need(candidate, name=name):
            workload = _workload(_with(config, candidate.fields), question, devices)
            needed = measure(workload.programs[name]).memory.peak
            named = ", ".join(f"{key}={value}" for key, value in candidate.fields.items())
            print_line(f"  {named}: {text.shown_bytes(needed)}")
            return needed

        as_it_is = fitting.Point(configs.field(config, field), found.memory.peak)
        fit = fitting.largest(candidates, need, limit, as_it_is)
        fits[name] = None if fit is None else {**fit[0].fields, "memory": fit[1]}
        print_line(f"{name}: {_advice(fit, field)}")
    return fits


def _advice(fit, field):
    if fit is None:
        return f"not even the smallest {field} fits; use more devices, or a smaller model or view"
    candidate, needed = fit
    flags = " ".join(f"--config.{name}={value}" for name, value in candidate.fields.items())
    return f"{flags} fits, with {text.shown_bytes(needed)}"


def _batch_field(config, name):
    return "train.micro_batch" if configs.system(config) == configs.CGN_IMAGENET else _BATCHES[name]


def _candidates(config, field, devices) -> list[fitting.Candidate]:
    """Smaller values of a batch size that the configuration accepts on these devices."""
    accepted = []
    for size in range(len(devices), configs.field(config, field) + 1, len(devices)):
        try:
            _with(config, {field: size})
        except InputError:
            continue
        accepted.append(fitting.Candidate({field: size}, size))
    return accepted


def _with(config, fields: dict[str, Any]):
    """The configuration with other values of some fields, checked."""
    stored = configs.to_json(config)
    for name, value in fields.items():
        *sections, last = name.split(".")
        configs.field(stored, ".".join(sections))[last] = value
    return configs.from_json(stored)


def _as_json(workload: Workload, costs: dict[str, Costs], fits, question: Question) -> dict[str, Any]:
    device = workload.mesh.devices.flat[0]
    rate = question.images_per_second
    return {
        "batch": workload.batch,
        "devices": {
            "count": workload.mesh.size,
            "kind": device.device_kind,
            "mesh": dict(workload.mesh.shape),
        },
        "parameters": workload.parameters,
        "images": workload.images,
        "steps_per_epoch": workload.steps_per_epoch,
        "epochs": workload.epochs,
        "steps": workload.steps,
        "hours": None if rate is None else workload.hours(rate),
        "programs": {
            name: dataclasses.asdict(each)
            | {
                "peak": each.memory.peak,
                "collectives": {kind: found._asdict() for kind, found in each.collectives.items()},
            }
            for name, each in costs.items()
        },
        "fits": fits,
    }
