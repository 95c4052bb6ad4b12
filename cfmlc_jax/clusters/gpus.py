"""NVIDIA GPUs that several processes of one machine see, and which of them each uses."""

import ctypes
import importlib.util
import pkgutil
from collections.abc import Mapping, Sequence

from cfmlc_jax.errors import InputError


def visible() -> list[str]:
    """UUIDs of the GPUs that CUDA shows this process, in its order; none without NVIDIA's driver or JAX's for GPUs."""
    if not jax_computes_on_gpus():
        return []
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, device, uuid = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    uuids = []
    for ordinal in range(count.value):
        cuda.cuDeviceGet(ctypes.byref(device), ordinal)
        cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid), device)  # of MIG devices, too
        uuids.append(bytes(uuid).hex())
    return uuids


def jax_computes_on_gpus() -> bool:
    """Whether the package is installed by which JAX computes on NVIDIA's GPUs (extras `cuda12`, `cuda13`)."""
    plugins = importlib.util.find_spec("jax_plugins")  # a namespace of several packages
    places = plugins.submodule_search_locations if plugins is not None else None
    return any(module.name.startswith("xla_cuda") for module in pkgutil.iter_modules(places or []))


def share(number: int, visible: Mapping[int, Sequence[str]], way_out: str) -> list[int] | None:
    """Positions of a process's GPUs among those that it sees; None: all of them.

    Processes that see the same GPUs divide them, in their order; JAX would give one to each, or, if a single
    process of a machine sees eight, the first of them.

    Args:
        number: of this process.
        visible: by process, the UUIDs of the GPUs that it sees.
        way_out: how to give each its own, for the message.

    Raises:
        InputError: the GPUs cannot be divided.
    """
    mine = visible[number]
    sharing = sorted(other for other, theirs in visible.items() if set(theirs) & set(mine))
    if len(sharing) <= 1:
        return None
    who = f"processes {', '.join(map(str, sharing))}"
    if any(set(visible[other]) != set(mine) for other in sharing):
        raise InputError(f"{who} see some GPUs in common and some not; {way_out}")
    each, rest = divmod(len(mine), len(sharing))
    if each == 0 or rest:
        raise InputError(
            f"{who} share {len(mine)} GPU{'s' * (len(mine) != 1)} of a machine, which leaves none or not as many for each; {way_out}"
        )
    first = each * sharing.index(number)
    # By the order of the first of them: the variables of another may list the same GPUs in another order.
    return [list(mine).index(uuid) for uuid in visible[sharing[0]][first : first + each]]
