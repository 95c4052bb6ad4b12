"""The compiled training step of any system."""

import functools

import jax
import jax.numpy as jnp

from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import State
from cfmlc_jax.engine.system import System


class TrainStep:
    """The compiled (state, batch) -> (state, first_bad): one update on a global batch.

    The state is donated. Each step has a random key of its own, a function of seed and step.
    `first_bad` is the position in `watched` of the first value that is not finite, or −1.

    Args:
        system: what is trained.
        abstract: shapes and shardings of the state (`state.plan`).
        seed: of the run's randomness.
        log_every: steps after which the tally of values starts anew.
        mesh: of the devices.

    Attributes:
        watched: paths of the values that a step checks, in the order of its check; known after the
            first call.
        jitted: the function under `jax.jit`, to be lowered and inspected.
    """

    def __init__(
        self, system: System, abstract: State, *, seed: int, log_every: int, mesh: jax.sharding.Mesh
    ):
        self.watched: list[str] = []

        def step(state: State, batch):
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            update = system.update(state.learned, batch, key, state.step)
            watched = _watched(update)
            # Names come with the trace: a second one, for them alone, takes seconds of a large model.
            self.watched[:] = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in watched]
            new_state = State(
                step=state.step + 1,
                learned=update.learned,
                tally=_tally(state.tally, update.values | {"steps": 1.0}, state.step % log_every == 0),
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


def gather(array, mesh: jax.sharding.Mesh):
    """A global array whole on every device, and so on every process."""
    return _gathering(mesh)(array)


@functools.cache
def _gathering(mesh):
    return jax.jit(lambda array: array, out_shardings=meshes.replicated(mesh))


def _watched(update):
    """(path, leaf) of everything that has to be finite."""
    trees = update.watched or [(name, value) for name, value in update.values.items()]
    return [leaf for name, tree in trees for leaf in jax.tree_util.tree_leaves_with_path({name: tree})]


def _first_bad(leaves):
    bad = jnp.stack([~jnp.isfinite(leaf).all() for leaf in leaves])
    return jnp.where(bad.any(), jnp.argmax(bad), -1)


def _tally(sums, values, afresh):
    return {name: jnp.where(afresh, 0.0, sums[name]) + values[name] for name in sums}
