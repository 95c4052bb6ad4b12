"""The state of a run: one pytree that holds everything the next step depends on."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.system import System


@flax.struct.dataclass
class State:
    """The state of a run; a checkpoint holds all of it.

    step: int32, the number of steps done.
    learned: what the system has learned (`system.System`).
    tally: sums of the step's values since the last log, and "steps", the number of summands. They are
        part of the state so that a resumed run logs the same means as an uninterrupted one.
    """

    step: Any
    learned: dict[str, Any]
    tally: dict[str, Any]


def plan(system: System, *, seed: int, mesh) -> tuple[Callable[[], State], State]:
    """A function that creates the initial state on the mesh; and that state's shapes and shardings.

    The state is created sharded: each device only ever holds its own part.
    """

    def initial_state():
        return State(
            step=jnp.int32(0),
            learned=system.init(jax.random.key(seed)),
            tally={name: jnp.float32(0) for name in (*system.values, "steps")},
        )

    abstract = meshes.with_shardings(jax.eval_shape(initial_state), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(initial_state, out_shardings=shardings), abstract


def to_items(state: State, system: System) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two items of a checkpoint: "model" (what prediction needs) and "training" (everything else)."""
    model, rest = system.split(state.learned)
    return model, {"step": state.step, "tally": state.tally, **rest}


def from_items(model: dict[str, Any], training: dict[str, Any]) -> State:
    """The state from a checkpoint's two items; the inverse of `to_items`."""
    rest = dict(training)
    step, tally = rest.pop("step"), rest.pop("tally")
    return State(step=step, learned=model | rest, tally=tally)
