"""Out of memory, on the devices or the host, in one line that names what takes it."""

import contextlib
from collections.abc import Iterator

import jax

from cfmlc_jax.errors import RunError


@contextlib.contextmanager
def enough(what: str, way_out: str) -> Iterator[None]:
    """Inside, what Python, NumPy or JAX raises for want of memory is told in one line.

    Args:
        what: goes on inside, "training" say.
        way_out: what takes less.

    Raises:
        RunError: there is not enough memory.
    """
    try:
        yield
    except MemoryError as error:
        raise RunError(f"{what}: out of memory on the host ({_brief(error)}); {way_out}") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        kind = jax.devices()[0].device_kind
        raise RunError(f"{what}: out of memory on the device, {kind} ({_brief(error)}); {way_out}") from error


def _brief(error):
    """The first line of an error that may have hundreds."""
    lines = str(error).strip().splitlines() or ["no more is known"]
    return lines[0].strip().rstrip(".:")[:200]
