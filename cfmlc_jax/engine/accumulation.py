"""Gradient accumulation: the gradient of a batch as a sum over its micro-batches, in the memory of one of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cfmlc_jax.engine import mesh as meshes

# More micro-batches would take too long to compile one by one.
MOST_COMPILED = 32
# (number of the micro-batch, its arrays, what earlier ones carried) -> (gradient, what is carried on, values).
Gradient = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


def accumulate(
    gradient: Gradient, params: Any, carried: Any, batch: Any, *, number: int, group: int = 1
) -> tuple[Any, Any, Any]:
    """The sum of the micro-batches' gradients; what the last one carries on; and all their values, [number, …].

    The micro-batches are computed one after the other by one compiled loop. With one micro-batch there is no loop, nor
    on CPUs, where XLA's gradients of convolutions are twenty times slower in a loop: there each of up to
    `MOST_COMPILED` micro-batches is compiled.

    Args:
        gradient: of one micro-batch. Its number is an int32, of which 0 is the first.
        params: what the gradient is with respect to; they give it shapes and types.
        carried: given to the first micro-batch.
        batch: a pytree of [b, …].
        number: of micro-batches; divides b / group.
        group: number of consecutive images that must be in one micro-batch (`split`).
    """
    if number == 1:
        total, carried, values = gradient(0, batch, carried)
        return total, carried, jax.tree.map(lambda value: jnp.asarray(value)[None], values)

    def add(state, part):
        (total, carried), (index, arrays) = state, part
        summand, carried, values = gradient(index, arrays, carried)
        return (jax.tree.map(jnp.add, total, summand), carried), values

    start = jax.tree.map(jnp.zeros_like, params), carried
    parts = jnp.arange(number), split(batch, number, group)
    few = number <= MOST_COMPILED
    run = _in_turn if few and meshes.in_use_is_of_cpus() else jax.lax.scan
    (total, carried), values = run(add, start, parts)
    return total, carried, values


def _in_turn(add, state, parts):
    """As `jax.lax.scan`, without a loop in the program."""
    add = jax.jit(add)  # traced once
    values = []
    for i in range(len(parts[0])):
        part = jax.tree.map(lambda array, i=i: array[i], parts)
        # A micro-batch waits for the one before, or the memory of both would be needed.
        state, part = jax.lax.optimization_barrier((state, part))
        state, value = add(state, part)
        values.append(value)
    return state, jax.tree.map(lambda *each: jnp.stack(each), *values)


def split(batch: Any, number: int, group: int = 1) -> Any:
    """The micro-batches of a batch, each over all devices: a pytree of [b, …] -> of [number, b/number, …].

    A batch consists of groups of consecutive images. Micro-batch n has the groups n, n + number, n + 2·number …, so
    that no image leaves its device if the number of groups on a device is a multiple of `number`. Otherwise the
    devices exchange images.

    Args:
        batch: a pytree of [b, …].
        number: of micro-batches; divides b / group.
        group: number of images in a group.
    """

    def parts(array):
        by_group = array.reshape(-1, number, group, *array.shape[1:]).swapaxes(0, 1)
        return meshes.images_over_devices(by_group.reshape(number, -1, *array.shape[1:]), axis=1)

    return jax.tree.map(parts, batch)
