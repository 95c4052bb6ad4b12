"""Programs that are compiled before they are needed, so that a lack of memory shows early."""

from typing import Any

import jax


def compile_within_memory(lowered: jax.stages.Lowered) -> None:
    """Compile a program; a later call of its function with arguments of the same shapes does not compile again.

    Raises:
        jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED, the program needs more memory than a device has, where that is
            known: GPUs find out only when a program runs.
    """
    sizes: Any = lowered.compile().memory_analysis()
    limit = bytes_of(jax.local_devices()[0])
    needed = (
        sizes.argument_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
    )
    if limit is not None and needed > limit:
        raise jax.errors.JaxRuntimeError(
            f"RESOURCE_EXHAUSTED: the program needs {needed / 2**30:.1f} GiB of {limit / 2**30:.1f} GiB"
        )


def bytes_of(device: jax.Device) -> int | None:
    """The bytes of memory that JAX may use on a device; None: unknown, as for CPUs."""
    return (device.memory_stats() or {}).get("bytes_limit")
