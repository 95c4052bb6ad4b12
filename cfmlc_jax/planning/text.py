"""A plan in words, and numbers with units."""

import re

from cfmlc_jax.engine.plan import Costs, Workload
from cfmlc_jax.errors import InputError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parsed_bytes(text: str, flag: str) -> int:
    """Bytes of a text such as "24G", "15.75GiB" or "80 GB"; K, M, G and T are powers of 1024.

    Raises:
        InputError: another text; the message names the flag.
    """
    parts = _SIZE.fullmatch(text.strip())
    number = float(parts[1]) * 1024 ** _POWERS[parts[2].upper()] if parts else 0
    if not parts or not 1 <= number < 2**60:
        raise InputError(f"{flag}={text} is not a size of memory; give 24G, for example")
    return int(number)


def shown_bytes(number: float) -> str:
    """Bytes with a unit: "14.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1024
    return f"{number:,.2f} TiB"


def shown_count(number: float) -> str:
    """A number with an SI prefix: "7.8 T"."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}".strip()
        number /= 1000
    return f"{number:,.3g} P"


def head(workload: Workload, images_per_second: float | None) -> list[str]:
    """The lines about the run as a whole."""
    mesh = workload.mesh
    sizes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    parameters = ", ".join(f"{name} {count:,}" for name, count in workload.parameters.items())
    return [
        f"parameters    {parameters}",
        f"batch         {workload.batch}",
        f"devices       {mesh.size} {device.device_kind}, mesh {sizes}",
        f"length        {_length(workload, images_per_second)}",
    ]


def _length(workload, images_per_second):
    if workload.steps is None:
        return f"{workload.epochs} epochs of unknown length; give --images=N, the number of training images"
    text = (
        f"{workload.images:,} images are {workload.steps_per_epoch:,} steps; {workload.epochs} epochs "
        f"are {workload.steps:,} steps"
    )
    if images_per_second is None:
        return text
    return f"{text}, {workload.hours(images_per_second):,.1f} hours at {images_per_second:g} images/s"


def program(name: str, about: str, costs: Costs) -> list[str]:
    """The lines about a program."""
    memory = costs.memory
    parts = {
        "arguments": memory.arguments,
        "outputs": memory.outputs,
        "temporaries": memory.temporaries,
        "rest of the run": memory.held,
    }
    listed = " + ".join(f"{part} {shown_bytes(size)}" for part, size in parts.items() if size)
    exchanged = ", ".join(
        f"{each.count} {kind} of {shown_bytes(each.bytes)}" for kind, each in costs.collectives.items()
    )
    source = "read from the cache" if costs.from_cache else "compiled"
    return [
        f"{name}{f', {about}' if about else ''} ({source} in {costs.compile_seconds:.1f} s)",
        f"  FLOPs       {shown_count(costs.flops)}, in matrix products and convolutions on all devices",
        f"  moved       {shown_bytes(costs.bytes_moved)} on each device",
        f"  memory      {shown_bytes(memory.peak)} on each device: {listed}",
        f"  collectives {exchanged or 'none'}",
    ]
