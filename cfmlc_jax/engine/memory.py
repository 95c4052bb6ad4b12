"""Out of memory, on the devices or the host, in one line that names what takes it."""

import contextlib
from collections.abc import Iterator

import jax

from cfmlc_jax.errors import RunError


def needed_for(what: str, config, section: str) -> contextlib.AbstractContextManager[None]:
    """`enough`, with the fields of a configuration that decide how much "train" or "evaluate" takes."""
    sizes = {
        f"{section}.batch_size": config[section].batch_size,
        "views.image_size": config.views.image_size,
        "patches.grids": tuple(config.patches.grids),
    }
    named = ", ".join(f"{name} (now {value})" for name, value in sizes.items())
    return enough(
        what,
        f"make one of {named} smaller, set model.dtype to bfloat16, or take fewer data.workers or more devices",
    )


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
