"""The state of a run: one pytree without functions, all that its next step depends on."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.system import System


@flax.struct.dataclass
class State:
    """What a checkpoint holds of a run.

    step: int32, updates done.
    learned: the system's.
    tally: sums of the values since the last log, and "steps", their number. In the state, so that a
        resumed run logs what an unbroken one would.
    """

    step: Any
    learned: dict[str, Any]
    tally: dict[str, Any]


def plan(system: System, *, seed: int, mesh) -> tuple[Callable[[], State], State]:
    """A function that makes the first state on the mesh, and that state's shapes and shardings.

    The state is born sharded: no device ever holds what it does not keep.
    """

    def born():
        return State(
            step=jnp.int32(0),
            learned=system.init(jax.random.key(seed)),
            tally={name: jnp.float32(0) for name in (*system.values, "steps")},
        )

    abstract = meshes.place(jax.eval_shape(born), mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(born, out_shardings=shardings), abstract


def to_items(state: State, system: System) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint's items "model" (what prediction needs) and "training" (the rest)."""
    model, rest = system.split(state.learned)
    return model, {"step": state.step, "tally": state.tally, **rest}


def from_items(model: dict[str, Any], training: dict[str, Any]) -> State:
    """The state that `to_items` took apart."""
    rest = dict(training)
    step, tally = rest.pop("step"), rest.pop("tally")
    return State(step=step, learned=model | rest, tally=tally)
