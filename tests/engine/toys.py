"""Systems of a few lines, and runs that train them. As a program, it is a run that kills itself.

python toys.py WORKDIR DEVICES STEP SAVED: trains `Line` on DEVICES devices; sends itself SIGKILL before step STEP,
when checkpoint SAVED is complete.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.engine import hooks
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.run import Run, RunOptions, Schedule
from cfmlc_jax.engine.system import Update

EPOCHS, PER_EPOCH, BATCH = 3, 4, 16


class Line:
    """y = slope · x + offset, fitted by noisy gradient descent: two parameters."""

    values, selection = ("loss",), "fit"

    def init(self, key):
        return {"line": jax.random.normal(key, (2,)), "updates": jnp.float32(0)}

    def update(self, learned, batch, key, step):
        loss = lambda line: ((line[0] * batch["x"] + line[1] - batch["y"]) ** 2).mean()  # noqa: E731
        value, slope = jax.value_and_grad(loss)(learned["line"])
        line = learned["line"] - 0.1 * slope + 0.01 * jax.random.normal(key, (2,))
        return Update({"line": line, "updates": learned["updates"] + 1}, {"loss": value})

    def split(self, learned):
        return {"line": learned["line"]}, {"updates": learned["updates"]}

    def readings(self, learned):
        return {"updates": learned["updates"]}

    def validate(self, learned, poll):
        poll()
        return {"weights": {"fit": -float(abs(learned["line"] - jnp.array([2.0, 1.0])).sum())}}


class Duel:
    """Two numbers, each with its own optimiser. They are updated in turn: the second uses the first's new value."""

    values, selection = ("gap", "cost"), "closeness"

    def init(self, key):
        return {"leader": jnp.zeros(()), "follower": jnp.ones(()), "velocity": jnp.zeros(())}

    def update(self, learned, batch, key, step):
        leader = learned["leader"] - 0.1 * jax.grad(lambda a: (a - batch["x"].mean()) ** 2)(learned["leader"])
        cost, slope = jax.value_and_grad(lambda b: (b - leader) ** 2)(learned["follower"])
        velocity = 0.5 * learned["velocity"] + slope
        follower = learned["follower"] - 0.1 * velocity
        gap = jnp.abs(leader - follower)
        return Update(
            {"leader": leader, "follower": follower, "velocity": velocity}, {"gap": gap, "cost": cost}
        )

    def split(self, learned):
        model = {"leader": learned["leader"]}
        return model, {name: learned[name] for name in ("follower", "velocity")}

    def readings(self, learned):
        return {}

    def validate(self, learned, poll):
        return {"weights": {"closeness": -float(jnp.abs(learned["leader"] - learned["follower"]))}}


def mesh_of(devices, fsdp=1):
    grid = np.array(jax.devices()[:devices]).reshape(-1, fsdp)
    return jax.sharding.Mesh(grid, (meshes.DATA, meshes.FSDP), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def batch(step):
    x = np.random.default_rng(step).normal(size=BATCH).astype(np.float32)
    return {"x": x, "y": 2 * x + 1}


def batches(from_step, before=lambda step: None):
    for step in range(from_step, EPOCHS * PER_EPOCH):
        before(step)
        yield batch(step)


class Asked(hooks.Preemption):
    """A request to end that comes at the n-th call of `requested`, or never (0)."""

    def __init__(self, at=0):
        super().__init__()
        self._left = at

    def requested(self):
        self._left -= 1
        return self._left == 0


def run(
    system,
    workdir,
    devices=1,
    *,
    before=lambda step: None,
    fsdp=1,
    asked=0,
    patience=None,
    validate_every=1,
    log_every=3,
    print_line=lambda _: None,
    **options,
):
    """A run that has not started; `options` are further fields of `RunOptions`."""
    schedule = Schedule(
        seed=3,
        epochs=EPOCHS,
        steps_per_epoch=PER_EPOCH,
        batch_size=BATCH,
        log_every=log_every,
        checkpoint_every=5,
        patience=patience,
        validate_every=validate_every,
    )
    workdir.mkdir(exist_ok=True)
    run_options = RunOptions(
        meta={"class_names": ["y"]}, print_line=print_line, preemption=Asked(asked), **options
    )
    return Run(
        system, lambda step: batches(step, before), schedule, workdir, mesh_of(devices, fsdp), run_options
    )


def fitted(*args, **options):
    """A run that has finished."""
    finished = run(*args, **options)
    try:
        finished.resume()
        finished.fit()
    finally:
        finished.close()
    return finished


def end_before(last, saved):
    """A function of a step that ends the process before one of them, when a checkpoint is complete."""

    def before(step):
        while step == last:
            if saved.exists():
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)

    return before


if __name__ == "__main__":
    workdir, devices, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    fitted(Line(), workdir, devices, before=end_before(last, workdir / "checkpoints" / sys.argv[4]))
