"""Training steps on images that lose a class: from when on, by which key, and on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import Training, mesh_of, objective

from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify.patching import MapCells
from cfmlc_jax.classify.removing import Removal
from cfmlc_jax.classify.update import ClassifierSystem
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Classifier, Outputs
from cfmlc_jax.models.heads import linear, map_cells

SIDE, CELL, CLASSES = 8, 4, 3
SIZE = SIDE * CELL
CELLS = MapCells(2, side=SIDE)


class Located:
    """A classifier that finds class k in the cell in column 0 and row 3k, and keeps what it was last trained on."""

    frozen = ()

    def init(self, key, views, *, train):
        return {"params": {"bias": jnp.zeros(CLASSES)}}

    def apply(self, variables, views, *, train, mutable=(), rngs=None):
        if train:
            self.views = views
        bias = variables["params"]["bias"]
        whole = jnp.broadcast_to(bias[None, None], (*views.shape[:2], CLASSES))
        places = jnp.arange(SIDE * SIDE)[:, None] == 3 * jnp.arange(CLASSES)[None]
        cells = jnp.where(places, 0.0, -20.0)[None, None] + bias[None, None, None]
        cells = jnp.broadcast_to(cells, (len(views), 1, *places.shape))
        outputs = Outputs(whole=whole, attention=None, score=None, cells=(cells, cells), features={})
        return (outputs, {}) if train else outputs


def test_a_step_trains_on_removals_from_the_first_step_that_has_them(rng):
    goal = objective(
        loss=lambda logits, labels: (logits * labels).sum(),
        patching=CELLS,
        removal=Removal(1.0, from_step=2, patching=CELLS, pooling=POOLINGS["pivot"]),
    )
    model = Located()
    system = ClassifierSystem(model, (1, 1, SIZE, SIZE, 3), goal, optax.sgd(1.0), ema_decay=0.5)
    learned = system.init(jax.random.key(0))
    batch = {
        "views": jnp.asarray(rng.random((16, 1, SIZE, SIZE, 3)), jnp.float32),
        "labels": jnp.ones((16, CLASSES)),
    }
    # By plain gradient descent, a class's bias falls by the number of its labels: twice, as the patches have it too.
    before = system.update(learned, batch, jax.random.key(1), jnp.int32(1)).learned["variables"]["params"]
    np.testing.assert_array_equal(model.views, batch["views"])
    np.testing.assert_allclose(before["bias"], -32 * np.ones(CLASSES), rtol=1e-6)
    first, again, other = (
        (system.update(learned, batch, jax.random.key(seed), jnp.int32(2)).learned, model.views)
        for seed in (1, 1, 2)
    )
    bias = np.asarray(first[0]["variables"]["params"]["bias"])
    np.testing.assert_allclose(bias.sum(), -32 * (CLASSES - 1), rtol=1e-6)
    changed = np.asarray((first[1] != batch["views"]).any(axis=(1, 4)))
    assert changed[:, :, :CELL].any(axis=(1, 2)).all()
    assert not changed[:, :, 3 * CELL :].any()
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


@pytest.fixture
def small_arrays_are_split(monkeypatch):
    monkeypatch.setattr(meshes, "LEAST_SPLIT", 2)


def test_removals_on_eight_devices_equal_those_on_one(rng, small_arrays_are_split):
    batch = {
        "views": rng.integers(0, 256, (8, 1, SIZE, SIZE, 3)).astype(np.uint8),
        "labels": (rng.random((8, CLASSES)) < 0.6).astype(np.float32),
    }

    def after_a_step(devices, fsdp):
        model = Classifier(
            backbone=resnet.ResNet(stage_sizes=(1, 1), block=resnet.BasicBlock, width=8, small_stem=True),
            head=linear.LinearHead(CLASSES, "self"),
            cells=map_cells.MapCells(CLASSES, "self", "layer1", background=True),
        )
        cells = MapCells(2, side=SIZE // 8)
        goal = objective(
            patching=cells,
            pooling="exclusive",
            removal=Removal(1.0, 0, cells, POOLINGS["exclusive"], exchange=0.5),
        )
        run = Training(
            model, (1, 1, SIZE, SIZE, 3), goal, optax.sgd(0.01), mesh=mesh_of(devices, fsdp), ema_decay=0.5
        ).start()
        assert run.update(batch) == -1
        return float(run.tally["loss"]), jax.tree.map(np.asarray, run.variables)

    (loss, one), (loss_of_many, many) = (after_a_step(*mesh) for mesh in ((1, 1), (8, 4)))
    np.testing.assert_allclose(loss_of_many, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), many, one)
