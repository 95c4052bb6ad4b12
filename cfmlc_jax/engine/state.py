"""Everything a run has learned, as one pytree without functions."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.engine import mesh as meshes


@flax.struct.dataclass
class TrainState:
    """What a checkpoint holds of a run, and all that the next step depends on.

    step: int32, updates done.
    variables: {"params", "batch_stats"} of the model.
    average: the same, averaged over the steps (EMA).
    opt_state: the optimiser's.
    mean_colour: float32 [3], mean of all whole views trained on, in [0, 1]: the null "mean".
    tally: sums of the logged values since the last log, and "steps", their number. In the state,
        so that a resumed run logs what an unbroken one would.
    """

    step: Any
    variables: dict[str, Any]
    average: dict[str, Any]
    opt_state: Any
    mean_colour: Any
    tally: dict[str, Any]

    def parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What prediction needs, and the rest: the checkpoint's items "model" and "training"."""
        model = {"variables": self.variables, "average": self.average, "mean_colour": self.mean_colour}
        return model, {"step": self.step, "opt_state": self.opt_state, "tally": self.tally}


def plan(model, optimizer, sample_shape, *, tallied, seed: int, mesh) -> tuple[Callable, TrainState]:
    """A function that makes the fresh state on the mesh, and that state's shapes and shardings.

    The state is born sharded: no device ever holds what it does not keep.

    Args:
        model: a Linen module.
        optimizer: an optax transformation.
        sample_shape: [1, v, s, s, 3] of views.
        tallied: names of the values that a step logs.
        seed: of the weights.
        mesh: where to put it.
    """

    def born():
        key = jax.random.key(seed)
        variables = model.init(key, jnp.zeros(sample_shape, jnp.float32), train=False)
        variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
        return TrainState(
            step=jnp.int32(0),
            variables=variables,
            average=jax.tree.map(jnp.copy, variables),
            opt_state=optimizer.init(variables["params"]),
            mean_colour=jnp.zeros(3, jnp.float32),
            tally={name: jnp.float32(0) for name in (*tallied, "steps")},
        )

    shapes = jax.eval_shape(born)
    shardings = meshes.state_shardings(shapes, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), shapes, shardings
    )
    return jax.jit(born, out_shardings=shardings), abstract
