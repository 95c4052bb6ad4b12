"""Out-of-memory errors of devices and host, as one line that says what to make smaller."""

import contextlib
from collections.abc import Iterator

import jax

from cfmlc_jax.errors import RunError


@contextlib.contextmanager
def explained(activity: str, remedy: str) -> Iterator[None]:
    """A context that turns the out-of-memory errors of Python, NumPy and JAX into a `RunError` of one line.

    Args:
        activity: what runs inside, such as "training"; the error starts with it.
        remedy: what the user can do; the error ends with it.

    Raises:
        RunError: there is not enough memory.
    """
    try:
        yield
    except MemoryError as error:
        raise RunError(f"{activity}: out of memory on the host ({_brief(error)}); {remedy}") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        kind = jax.devices()[0].device_kind
        raise RunError(
            f"{activity}: out of memory on the device, {kind} ({_brief(error)}); {remedy}"
        ) from error


def _brief(error):
    """The first line of an error message that may have hundreds."""
    lines = str(error).strip().splitlines() or ["no details"]
    return lines[0].strip().rstrip(".:")[:200]
