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
from cfmlc_jax.engine.units import shown_bytes
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
    size = sizes.require(config.data, classes=question.classes, images=question.images)
    plans = {configs.CLASSIFIER: classifier.workload, configs.CGN: cgn.workload}
    return plans[system](config, size, devices)


def _fit(config, question, devices, costs: dict[str, Costs], print_line) -> dict[str, Any]:
    """What to change so that each program fits into the memory asked for: program -> fields; prints it."""
    limit, fits = question.memory, {}
    for name, each in costs.items():
        need = each.memory.peak
        start = f"{name}: {shown_bytes(need)} on each device"
        if need <= limit:
            print_line(f"{start} fits into {shown_bytes(limit)}")
            continue
        print_line(f"{start} does not fit into {shown_bytes(limit)}")

        def measured(candidate, name=name):
            workload = _workload(_with(config, candidate.fields), question, devices)
            needed = measure(workload.programs[name]).memory.peak
            print_line(f"  {_listed(candidate.fields)}: {shown_bytes(needed)}")
            return needed

        found = None
        for family in _families(config, name, devices):
            found = found or fitting.largest(family, measured, limit, _images_and(config, name, need))
        fits[name] = None if found is None else {**found[0].fields, "memory": found[1]}
        print_line(f"{name}: {_advice(found)}")
    return fits


def _advice(found):
    if found is None:
        return (
            "nothing fits; use more devices with mesh.fsdp, model.dtype bfloat16, or a smaller model or view"
        )
    candidate, needed = found
    flags = " ".join(f"--config.{name}={value}" for name, value in candidate.fields.items())
    return f"{flags} fits, with {shown_bytes(needed)}"


def _listed(fields):
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def _images_and(config, name, need) -> fitting.Point:
    """The images of a program that are in memory at once, and its need."""
    train = config.train
    if name != TRAINING:
        return fitting.Point(config.evaluate.batch_size, need)
    if configs.system(config) == configs.CGN_IMAGENET:
        return fitting.Point(train.micro_batch, need)
    return fitting.Point(train.batch_size // train.get("micro_batches", 1), need)


def _families(config, name, devices) -> list[list[fitting.Candidate]]:
    """The changes to try, in this order: those that leave the numbers of a training as they are come first.

    In a family, only the number of images in memory differs; it ascends.
    """
    most = _images_and(config, name, 0).images
    smaller = range(len(devices), most, len(devices))
    if name != TRAINING:
        families = [[({"evaluate.batch_size": size}, size) for size in smaller]]
    elif configs.system(config) == configs.CGN_IMAGENET:
        images = most * config.train.micro_batches
        families = [
            [
                ({"train.micro_batch": size, "train.micro_batches": images // size}, size)
                for size in smaller
                if images % size == 0
            ]
        ]
    else:
        families = [[({"train.batch_size": size}, size) for size in smaller]]
        if configs.system(config) == configs.CLASSIFIER:
            size = config.train.batch_size
            numbers = configs.micro_batches(config, len(devices))
            families.insert(
                0, [({"train.micro_batches": n}, size // n) for n in numbers[:0:-1] if size // n < most]
            )
    accepted = [
        [fitting.Candidate(*each) for each in family if _accepted(config, each[0])] for family in families
    ]
    return [family for family in accepted if family]


def _accepted(config, fields):
    try:
        _with(config, fields)
    except InputError:
        return False
    return True


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
            name: dataclasses.asdict(each) | {"peak": each.memory.peak} for name, each in costs.items()
        },
        "fits": fits,
    }
