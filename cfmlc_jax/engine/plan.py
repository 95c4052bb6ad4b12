"""What the programs of a run need, from the compiled programs alone: no data is read, and no step is done."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from cfmlc_jax.engine import compilation, flops, hlo, state
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.engine.system import System

TRAINING = "training step"


@dataclass(frozen=True)
class Memory:
    """Bytes that a program needs on each device.

    arguments: what it is given: state and batch.
    outputs: its results, without those that take the place of an argument.
    temporaries: what it computes on the way.
    held: what else of the run is in memory meanwhile.
    """

    arguments: int
    outputs: int
    temporaries: int
    held: int = 0

    @property
    def peak(self) -> int:
        """All of it together."""
        return self.arguments + self.outputs + self.temporaries + self.held


@dataclass(frozen=True)
class Costs:
    """What one call of a compiled program costs.

    flops: of matrix products and convolutions, over all devices (`flops.count`).
    bytes_moved: to and from memory, on each device: operands and results of every instruction. Caches save some of it.
    memory: on each device.
    collectives: by kind, on each device.
    compile_seconds: how long it took to compile, or to read from the cache.
    from_cache: whether it was read from the cache.
    """

    flops: int
    bytes_moved: float
    memory: Memory
    collectives: dict[str, hlo.Collective]
    compile_seconds: float
    from_cache: bool


class Program(NamedTuple):
    """A program that is not compiled yet.

    trace: traces it.
    about: what it works on, in words.
    held: bytes that the run has on each device besides the program's arguments.
    """

    trace: Callable[[], jax.stages.Traced]
    about: str = ""
    held: int = 0


@dataclass(frozen=True)
class Workload:
    """A run that could be started: its programs, which are not compiled yet, and its length.

    mesh: the devices.
    batch: the batch of a step, in words.
    parameters: numbers of parameters by part.
    programs: by name, the training step first.
    images_per_step: over all devices.
    images: in an epoch; None: unknown.
    steps_per_epoch: None: unknown.
    epochs: at most.
    """

    mesh: jax.sharding.Mesh
    batch: str
    parameters: dict[str, int]
    programs: Mapping[str, Program]
    images_per_step: int
    images: int | None
    steps_per_epoch: int | None
    epochs: int

    @property
    def steps(self) -> int | None:
        """The number of steps of the whole run; None: unknown."""
        return None if self.steps_per_epoch is None else self.epochs * self.steps_per_epoch

    def hours(self, images_per_second: float) -> float | None:
        """The hours that all steps take at a rate of training images, without validation; None: unknown."""
        return None if self.steps is None else self.steps * self.images_per_step / images_per_second / 3600


def training_step(
    system: System, batch: Any, *, mesh: jax.sharding.Mesh, seed: int = 0, log_every: int = 1
) -> tuple[state.State, Program]:
    """The abstract state of a system, and its training step.

    Args:
        system: what a run would train.
        batch: shapes and dtypes of a global batch, as a pytree of `jax.ShapeDtypeStruct`.
        mesh: the devices.
        seed: of the run.
        log_every: of the run.
    """
    _, abstract = state.plan(system, seed=seed, mesh=mesh)
    step = TrainStep(system, abstract, seed=seed, log_every=log_every, mesh=mesh)
    return abstract, Program(lambda: step.jitted.trace(abstract, batch))


def measure(program: Program) -> Costs:
    """The costs of a program. Compiles it, which takes seconds to minutes."""
    traced = program.trace()
    lowered = traced.lower()
    start = time.perf_counter()
    with compilation.counted() as compilations:
        compiled = lowered.compile()
    seconds = time.perf_counter() - start
    text = hlo.Program(compiled.as_text())
    return Costs(
        flops=flops.count(traced.jaxpr),
        bytes_moved=compiled.cost_analysis()["bytes accessed"] * text.repeated_bytes(),
        memory=memory_of(compiled, held=program.held),
        collectives=text.collectives(),
        compile_seconds=seconds,
        from_cache=compilations.loaded.total() > 0,
    )


def memory_of(compiled: jax.stages.Compiled, held: int = 0) -> Memory:
    """The memory of a compiled program; `held` is what else of the run is in memory meanwhile."""
    sizes: Any = compiled.memory_analysis()
    return Memory(
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        held=held,
    )


def bytes_on_device(tree: Any) -> int:
    """The bytes of a pytree of sharded shapes on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def count_parameters(tree: Any) -> int:
    """The number of entries of a pytree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
