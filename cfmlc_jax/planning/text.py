"""A plan in words."""

from cfmlc_jax.engine.plan import Costs, Workload
from cfmlc_jax.engine.units import shown_bytes, shown_count


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
        epochs = _counted(workload.epochs, "epoch")
        return f"{epochs} of unknown length; give --images=N, the number of training images"
    text = (
        f"{_are(workload.images, 'image')} {_counted(workload.steps_per_epoch, 'step')}; "
        f"{_are(workload.epochs, 'epoch')} {_counted(workload.steps, 'step')}"
    )
    if images_per_second is None:
        return text
    return f"{text}, {workload.hours(images_per_second):,.1f} hours at {images_per_second:g} images/s"


def _counted(number, noun):
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _are(number, noun):
    return f"{_counted(number, noun)} {'is' if number == 1 else 'are'}"


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
