"""The mesh of all devices: images are split over all of it, parameters over its axis "fsdp"."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cfmlc_jax.errors import InputError

DATA, FSDP = "data", "fsdp"
# The fewest elements of an array that is split over "fsdp".
LEAST_SPLIT = 2**16


def create(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh [devices / fsdp, fsdp] of all devices of all processes, in the order of the processes.

    Each process reads consecutive images of a batch, and they belong on its own devices. `jax.make_mesh`
    is not used because on TPUs it follows the wiring, which mixes the devices of several processes. The
    axes are Auto: with explicit axes, cutting an image into patches raises a sharding error.

    Args:
        fsdp: number of devices that together hold one copy of the parameters.
        devices: of the mesh; None: those of the run.

    Raises:
        InputError: fsdp does not divide the number of devices.
    """
    devices = in_process_order(jax.devices() if devices is None else devices)
    if len(devices) % fsdp:
        raise InputError(
            f"mesh.fsdp {fsdp} does not divide the {len(devices)} devices; {_divisors(len(devices))}"
        )
    grid = np.array(devices, object).reshape(-1, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def in_process_order(devices: Iterable) -> list:
    """The devices sorted by process, then by device id."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def check_batch(name: str, batch_size: int, devices: int | None = None) -> None:
    """Raise unless the number of devices divides the batch size.

    Args:
        name: of the field of the configuration, for the error.
        batch_size: images, over all devices.
        devices: their number; None: those of the run.

    Raises:
        InputError: some devices would get more images than others.
    """
    devices = devices or jax.device_count()
    if batch_size % devices:
        below = batch_size // devices * devices
        tries = " or ".join(str(size) for size in (below, below + devices) if size)
        raise InputError(f"config.{name} {batch_size} is not divisible by the {devices} devices; try {tries}")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis (images) over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def in_use(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """A context in which functions are traced for this mesh, so that they can constrain their arrays' shardings."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def in_use_is_of_cpus() -> bool:
    """Whether there is a mesh `in_use` and its devices are CPUs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is not None and device.platform == "cpu"


def images_over_devices(array, axis: int = 0):
    """The array with its axis of images split over all devices of the mesh `in_use`; unchanged without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, (DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def with_shardings(shapes, mesh: Mesh):
    """The same tree of shapes, each leaf with a sharding.

    The longest axis of a leaf is split over "fsdp" where that divides it; other leaves are replicated. With
    fsdp 1 all leaves are replicated. So are leaves of fewer than `LEAST_SPLIT` elements, 256 kB in float32: a step
    gathers every split array, which takes tens of microseconds whatever its size, and most arrays of a network are
    vectors of its norms, which together are less than a hundredth of its parameters.
    """
    size = mesh.shape[FSDP]

    def sharding(leaf):
        if size > 1 and leaf.size >= LEAST_SPLIT:
            axis = int(np.argmax(leaf.shape))
            if leaf.shape[axis] % size == 0:
                return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP))
        return replicated(mesh)

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), shapes
    )


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """The `compiler_options` of `jax.jit` for programs with convolutions on this mesh's platform.

    On CPU, XLA runs float32 convolutions by YNNPACK. For the weight gradient of a 3×3 convolution that is
    up to ten times slower than XLA's own code, so only matrix products and sums are left to YNNPACK. XLA also drops
    barriers early on CPU and then stores what was to be computed again (`model.remat`), so that pass is disabled.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    return {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


def to_devices(batch, mesh: Mesh):
    """Global arrays, split over the devices, of which each process gives its own numpy part.

    A leaf may be a list of arrays, consecutive rows of one array. Those that are all of a device's rows are put there
    as they are, and others are joined on their device, not here.

    Args:
        batch: a tree of arrays and lists of arrays. None of a list's arrays has rows of two devices.
        mesh: from `create`.
    """
    sharding = batch_sharding(mesh)

    def place(leaf):
        if isinstance(leaf, list):
            return _from_parts(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, leaf)

    return jax.tree.map(place, batch, is_leaf=lambda leaf: isinstance(leaf, list))


def _from_parts(parts, sharding):
    """A global array of this process's consecutive parts."""
    rows = jax.process_count() * sum(map(len, parts))
    shape = (rows, *parts[0].shape[1:])
    # This process's devices, in the order of their rows.
    indices = sharding.addressable_devices_indices_map(shape)
    devices = sorted(indices, key=lambda device: indices[device][0].start or 0)
    share = len(parts) // len(devices)
    shards = []
    for i, device in enumerate(devices):
        own = [jax.device_put(part, device) for part in parts[i * share : (i + 1) * share]]
        shards.append(own[0] if len(own) == 1 else _join(own))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


@jax.jit
def _join(parts):
    return jnp.concatenate(parts)


def _divisors(n):
    return "try " + ", ".join(str(i) for i in range(1, n + 1) if n % i == 0)
