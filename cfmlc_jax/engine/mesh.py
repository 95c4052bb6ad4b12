"""Devices as one mesh: images are split over all of them, parameters over the axis "fsdp"."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cfmlc_jax.errors import InputError

DATA, FSDP = "data", "fsdp"


def create(fsdp: int = 1) -> Mesh:
    """All devices of all processes, [devices / fsdp, fsdp], in the order of the processes.

    A process reads consecutive images of a batch, and these are to land on its own devices.
    `jax.make_mesh` follows the wires between TPUs instead, which go back and forth between processes.
    Auto axes: with explicit ones, cutting an image into patches raises a sharding error.

    Raises:
        InputError: devices that fsdp does not divide.
    """
    devices = in_process_order(jax.devices())
    if len(devices) % fsdp:
        raise InputError(
            f"mesh.fsdp {fsdp} does not divide the {len(devices)} devices; {_divisors(len(devices))}"
        )
    grid = np.array(devices, object).reshape(-1, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def in_process_order(devices: Iterable) -> list:
    """Devices by their process, and within it by their number."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def check_batch(name: str, batch_size: int) -> None:
    """Pass if every device gets as many images as the others.

    Raises:
        InputError: a batch that the devices do not divide.
    """
    devices = jax.device_count()
    if batch_size % devices:
        below = batch_size // devices * devices
        tries = " or ".join(str(size) for size in (below, below + devices) if size)
        raise InputError(f"config.{name} {batch_size} is not divisible by the {devices} devices; try {tries}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis (images) over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(abstract_state, mesh: Mesh):
    """Sharding of every leaf: its longest axis over "fsdp" where that divides it, else whole.

    With fsdp 1 every device holds everything.
    """
    size = mesh.shape[FSDP]

    def place(leaf):
        if size > 1 and leaf.ndim:
            axis = int(np.argmax(leaf.shape))
            if leaf.shape[axis] % size == 0:
                return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP))
        return replicated(mesh)

    return jax.tree.map(place, abstract_state)


def place(shapes, mesh: Mesh):
    """Shapes with their shardings (`state_shardings`)."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options of `jax.jit` for programs with convolutions on this mesh's platform.

    XLA:CPU hands float32 convolutions to YNNPACK, which takes up to ten times as long as XLA's own
    code for the weight gradient of a 3×3. Matrix products and sums stay with YNNPACK.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    kept = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    return {"xla_cpu_experimental_ynn_fusion_type": kept}


def to_devices(batch, mesh: Mesh):
    """This process's numpy arrays as its part of global arrays, split over the devices."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def _divisors(n):
    return "try " + ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)
