"""The devices that a plan is for: those of this machine, several CPU devices, or TPUs that are not there."""

import importlib.util
import os
import re

import jax

from cfmlc_jax import processes
from cfmlc_jax.engine.mesh import in_process_order
from cfmlc_jax.errors import InputError

EXAMPLES = "v5e:4x4, v4:2x2x4, v5p:2x2x4 or cpu:8"
MOST = 4096
_FORM = re.compile(r"(cpu:[1-9]\d*|v\d\w*:\d+(x\d+)*)")
# Without these, the compiler asks Google's metadata server which machine it is on.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def devices(wanted: str | None) -> list[jax.Device]:
    """The devices, in the order of their processes.

    Call it before JAX computes anything.

    Args:
        wanted: "cpu:8" for so many CPU devices; "v5e:4x4" for TPUs of this kind and arrangement, for which XLA
            compiles on any machine that has the wheel `libtpu`; None: those of this machine.

    Raises:
        InputError: another text, no wheel, or an arrangement that it does not know.
    """
    if wanted is None:
        processes.require_devices()
        return in_process_order(jax.devices())
    if not _FORM.fullmatch(wanted):
        raise InputError(f"--plan_for={wanted} is not of the form KIND:SHAPE; give {EXAMPLES}, for example")
    kind, _, shape = wanted.partition(":")
    return _cpus(int(shape)) if kind == "cpu" else _tpus(wanted)


def _cpus(count):
    if count > MOST:
        raise InputError(f"--plan_for=cpu:{count} is more than {MOST} devices")
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has its devices already
        pass
    present = jax.devices("cpu")
    if len(present) < count:
        raise InputError(
            f"--plan_for=cpu:{count} asks for more CPU devices than the {len(present)} that JAX has started with"
        )
    return present[:count]


def _tpus(wanted):
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--plan_for={wanted} needs the compiler for TPUs: pip install libtpu")
    from jax.experimental import topologies  # warns where there is no accelerator

    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=wanted)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--plan_for={wanted} cannot be planned ({reason}); try {EXAMPLES}") from error
    return in_process_order(topology.devices)
