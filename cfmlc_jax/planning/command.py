"""Plans a run: compiles its programs on abstract arrays, and prints what they need."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.cgn import plan as cgn
from cfmlc_jax.cgn.imagenet import plan as imagenet
from cfmlc_jax.classify import plan as classifier
from cfmlc_jax.data import sizes
from cfmlc_jax.engine.memory import refused
from cfmlc_jax.engine.plan import TRAINING, Costs, Program, Workload, measure
from cfmlc_jax.engine.units import shown_bytes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.planning import fitting, text, topology
from cfmlc_jax.regions import plan as regions


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
    config = configs.on_platform(config, devices[0].platform)
    workload = _workload(config, question, devices)
    for line in text.head(workload, question.images_per_second):
        print_line(line)
    costs: dict[str, Costs] = {}
    needs = {}
    for name, program in workload.programs.items():
        measured = _measured(program)
        if isinstance(measured, Costs):
            costs[name], needs[name] = measured, measured.memory.peak
            lines = text.program(name, program.about, measured)
        else:
            needs[name] = measured
            lines = [f"{name} cannot be compiled: it needs {shown_bytes(measured)}, more than the device has"]
        for line in lines:
            print_line(line)
    fits = {}
    if question.memory is not None:
        fits = _fit(config, question, devices, needs, print_line)
    answer = _as_json(workload, costs, fits, question)
    if question.out is not None and jax.process_index() == 0:
        files.write_text(question.out, json.dumps(answer, indent=1) + "\n")
    return answer


def _workload(config, question: Question, devices: Sequence[jax.Device]) -> Workload:
    system = configs.system(config)
    if system == configs.CGN_IMAGENET:
        return imagenet.workload(config, devices)
    if system == configs.REGIONS:
        return regions.workload(config, devices, classes=question.classes, images=question.images)
    size = sizes.require(config.data, classes=question.classes, images=question.images)
    plans = {configs.CLASSIFIER: classifier.workload, configs.CGN: cgn.workload}
    workload = plans[system](config, size, devices)
    if workload.steps_per_epoch == 0:
        raise InputError(
            f"train has {workload.images} images, fewer than config.train.batch_size {config.train.batch_size}; make "
            "the batch smaller"
        )
    return workload


def _measured(program: Program) -> Costs | int:
    """The costs of a program, or the bytes that it needs if a compiler refuses it because the device has fewer."""
    try:
        return measure(program)
    except jax.errors.JaxRuntimeError as error:
        sizes = refused(str(error))
        if sizes is None:
            raise
        return sizes[0] + program.held


def _fit(config, question, devices, needs: dict[str, int], print_line) -> dict[str, Any]:
    """What to change so that each program fits into the memory asked for: program -> fields; prints it."""
    limit, fits = question.memory, {}
    for name, need in needs.items():
        start = f"{name}: {shown_bytes(need)} on each device"
        if need <= limit:
            print_line(f"{start} fits into {shown_bytes(limit)}")
            continue
        print_line(f"{start} does not fit into {shown_bytes(limit)}")

        def measured(candidate, name=name):
            workload = _workload(configs.replaced(config, candidate.fields), question, devices)
            result = _measured(workload.programs[name])
            needed = result.memory.peak if isinstance(result, Costs) else result
            print_line(f"  {_listed(candidate.fields)}: {shown_bytes(needed)}")
            return needed

        found = None
        for family in _families(config, name, devices):
            found = found or fitting.largest(family.candidates, measured, limit, family.too_large(need))
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


class _Family(NamedTuple):
    """Changes that differ only in the number of images in memory at once; it ascends.

    images: those of the configuration as it is, if it is a member; None if it is none.
    """

    candidates: list[fitting.Candidate]
    images: int | None

    def too_large(self, need: int) -> fitting.Point | None:
        """What is known of the family, if the configuration as it is needs so much."""
        return None if self.images is None else fitting.Point(self.images, need)


def _families(config, name, devices) -> list[_Family]:
    """The changes to try, in this order: first those that change no number, and of them first those that take no time."""
    if name != TRAINING:
        families = [_smaller(config, "evaluate.batch_size", len(devices))]
    elif configs.system(config) == configs.CGN_IMAGENET:
        families = [_smaller_micro_batch(config, len(devices))]
    else:
        families = [_smaller(config, "train.batch_size", len(devices))]
        if configs.system(config) == configs.CLASSIFIER:
            # Other numbers in any case, so as many images as the memory can hold.
            most = {} if config.model.remat == catalogue.REMAT[-1] else {"model.remat": catalogue.REMAT[-1]}
            smaller = _smaller(config, "train.batch_size", len(devices), most)
            families = [*_in_parts(config, len(devices)), smaller]
    accepted = [
        family._replace(candidates=[each for each in family.candidates if _accepted(config, each.fields)])
        for family in families
    ]
    return [family for family in accepted if family.candidates]


def _smaller(config, field, devices, also: Mapping[str, Any] | None = None) -> _Family:
    """Fewer images, and other fields changed with them."""
    most, changes = configs.field(config, field), dict(also or {})
    candidates = [fitting.Candidate({field: size, **changes}, size) for size in range(devices, most, devices)]
    return _Family(candidates, None if changes else most)


def _smaller_micro_batch(config, devices) -> _Family:
    """Micro-batches of a generator for ImageNet: fewer images in each, and more of them."""
    most, number = config.train.micro_batch, config.train.micro_batches
    candidates = [
        fitting.Candidate({"train.micro_batch": size, "train.micro_batches": most * number // size}, size)
        for size in range(devices, most, devices)
        if most * number % size == 0
    ]
    return _Family(candidates, most)


def _in_parts(config, devices) -> list[_Family]:
    """More micro-batches, then rematerialisation with each number of micro-batches."""
    size, now = config.train.batch_size, config.train.micro_batches
    numbers = configs.micro_batches(config, devices)[::-1]
    remats = catalogue.REMAT[catalogue.REMAT.index(config.model.remat) + 1 :]
    families = [
        _Family(
            [fitting.Candidate({"train.micro_batches": n}, size // n) for n in numbers if n > now],
            size // now,
        )
    ]
    for remat in remats:
        fields = [{"model.remat": remat, "train.micro_batches": n} for n in numbers]
        families.append(
            _Family([fitting.Candidate(each, size // each["train.micro_batches"]) for each in fields], None)
        )
    return families


def _accepted(config, fields):
    try:
        configs.replaced(config, fields)
    except InputError:
        return False
    return True


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
