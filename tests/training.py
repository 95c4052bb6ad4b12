"""A classifier's training in tests: its system, its state and its compiled step on some devices."""

import jax
import numpy as np

from cfmlc_jax import losses
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.patching import HostViews
from cfmlc_jax.classify.update import ClassifierSystem, Objective
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import plan
from cfmlc_jax.engine.step import TrainStep


def mesh_of(devices=1, fsdp=1):
    grid = np.array(jax.devices()[:devices]).reshape(-1, fsdp)
    return jax.sharding.Mesh(grid, (meshes.DATA, meshes.FSDP), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def asymmetric(logits, labels):
    """The papers' loss."""
    return losses.asymmetric_loss(logits, labels, gamma_neg=4.0, gamma_pos=0.0, clip=0.05).sum()


def objective(method="pat_t", *, loss=asymmetric, patching=None, pooling="pivot", **options):
    return Objective(
        loss=loss,
        names=pat.loss_names(pat.METHODS[method]),
        patching=HostViews(2) if patching is None else patching,
        pooling=POOLINGS[pooling],
        **options,
    )


class Training:
    """A system on a mesh, its compiled step, and its state (after `start`)."""

    def __init__(self, model, sample_shape, objective, optimizer, *, mesh, log_every=2, **options):
        self.mesh, self.model = mesh, model
        self.system = ClassifierSystem(model, sample_shape, objective, optimizer, **options)
        self.first_state, self.abstract = plan(self.system, seed=0, mesh=mesh)
        self.step = TrainStep(self.system, self.abstract, seed=0, log_every=log_every, mesh=mesh)

    def start(self):
        self.state = self.first_state()
        return self

    def update(self, batch):
        """One step; the position of the first value that is not finite."""
        self.state, first_bad = self.step(self.state, meshes.to_devices(batch, self.mesh))
        return int(first_bad)

    def __getattr__(self, name):
        """Parts of what is learned, and the tally."""
        if name in ("variables", "average", "mean_colour", "opt_state"):
            return self.state.learned[name]
        if name == "tally":
            return self.state.tally
        raise AttributeError(name)
