"""The compiled training step of a system."""

import functools

import jax
import jax.numpy as jnp

from cfmlc_jax.engine import flops
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import State
from cfmlc_jax.engine.system import System


class TrainStep:
    """A compiled function (state, batch) -> (new state, first_bad) for one step on a global batch.

    The old state is donated. The random key of a step depends on the seed and the step number alone.
    `first_bad` is an int32: the position in `watched` of the first array with a non-finite entry, or −1.

    Args:
        system: the system to train.
        abstract: shapes and shardings of the state (`state.plan`).
        seed: of all random keys.
        log_every: steps between two logs; the tally of values restarts after each log.
        mesh: the devices.

    Attributes:
        watched: paths of the arrays that are checked, in the order of the check. Empty before the first
            call, which traces the function.
        jitted: the result of `jax.jit`, for inspection of the compiled program.
    """

    def __init__(
        self, system: System, abstract: State, *, seed: int, log_every: int, mesh: jax.sharding.Mesh
    ):
        self.watched: list[str] = []

        def step(state: State, batch):
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            with meshes.in_use(mesh):
                update = system.update(state.learned, batch, key, state.step)
            watched = _watched(update)
            # A side effect of tracing: a separate trace for the names alone takes seconds for a large model.
            self.watched[:] = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in watched]
            new_state = State(
                step=state.step + 1,
                learned=update.learned,
                tally=_add(state.tally, update.values | {"steps": 1.0}, restart=state.step % log_every == 0),
            )
            return new_state, _first_bad([leaf for _, leaf in watched])

        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        self.jitted = jax.jit(
            step,
            in_shardings=(shardings, meshes.batch_sharding(mesh)),
            out_shardings=(shardings, meshes.replicated(mesh)),
            donate_argnums=0,
            compiler_options=meshes.compiler_options(mesh),
        )

    def __call__(self, state: State, batch) -> tuple[State, jax.Array]:
        """The state after the step, and `first_bad`."""
        return self.jitted(state, batch)

    def flops(self, state: State, batch) -> float:
        """The floating-point operations of the products and convolutions of a step, over all devices."""
        return flops.count(self.jitted.trace(state, batch).jaxpr)


def gather(array, mesh: jax.sharding.Mesh):
    """A copy of a global array on every device, so that every process can read all of it."""
    return _gather_on(mesh)(array)


@functools.cache
def _gather_on(mesh):
    return jax.jit(lambda array: array, out_shardings=meshes.replicated(mesh))


def _watched(update):
    """(path, array) of everything that must be finite."""
    trees = update.watched or [(name, value) for name, value in update.values.items()]
    return [leaf for name, tree in trees for leaf in jax.tree_util.tree_leaves_with_path({name: tree})]


def _first_bad(arrays):
    bad = jnp.stack([~jnp.isfinite(array).all() for array in arrays])
    return jnp.where(bad.any(), jnp.argmax(bad), -1)


def _add(tally, values, *, restart):
    return {name: jnp.where(restart, 0.0, tally[name]) + values[name] for name in tally}
