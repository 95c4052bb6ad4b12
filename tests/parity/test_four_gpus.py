"""A step in four micro-batches beside PyTorch's on four GPUs: each replica has a quarter of the batch and its own norms."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import objective

import cfmlc_jax
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.classify.update import ClassifierSystem
from cfmlc_jax.models import catalogue

torch = pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install 'cfmlc_jax[torch]'")
torchvision = pytest.importorskip("torchvision", reason="the model is torchvision's")

IMAGES, GPUS, SIZE, CLASSES, STEPS, RATE = 8, 4, 64, 5, 3, 1e-3


def asymmetric(logits, labels):
    """The papers' loss, gamma 4, clip 0.05, in PyTorch's float64."""
    positive = torch.sigmoid(logits)
    negative = (1 - positive + 0.05).clamp(max=1)
    losses = labels * positive.clamp(min=1e-8).log() + (1 - labels) * negative.clamp(min=1e-8).log()
    with torch.no_grad():
        weight = (1 - positive * labels - negative * (1 - labels)) ** (4 * (1 - labels))
    return -(losses * weight).sum()


def pytorch_steps(model, views, labels):
    """The losses of the steps. The running statistics are those of the first GPU, as the reference saves them."""
    losses = []
    for _ in range(STEPS):
        replicas = [copy.deepcopy(model) for _ in range(GPUS)]
        total = 0.0
        for replica, some, of_them in zip(replicas, views.chunk(GPUS), labels.chunk(GPUS)):
            replica.zero_grad()
            loss = asymmetric(replica(some), of_them)
            loss.backward()
            total += loss.item()
        with torch.no_grad():
            for parameter, *same in zip(model.parameters(), *(replica.parameters() for replica in replicas)):
                parameter -= RATE * sum(each.grad for each in same)
            for buffer, first in zip(model.buffers(), replicas[0].buffers()):
                buffer.copy_(first)
        losses.append(total)
    return losses


def test_steps_in_micro_batches_are_those_of_four_gpus(rng):
    model = torchvision.models.resnet18(num_classes=CLASSES).double().train()
    images = rng.random((IMAGES, SIZE, SIZE, 3))
    labels = (rng.random((IMAGES, CLASSES)) < 0.4).astype(np.float64)
    with jax.enable_x64(True):
        fields = catalogue.Model("resnet18", norm_groups=GPUS, dtype="float64")
        system = ClassifierSystem(
            catalogue.create(fields, CLASSES, SIZE, micro_batches=GPUS),
            (1, 1, SIZE, SIZE, 3),
            objective("whole", patching=Whole(2)),
            optax.sgd(RATE),
            ema_decay=0.0,
            micro_batches=GPUS,
            norm_groups=GPUS,
        )
        variables = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), cfmlc_jax.from_torch("resnet18", model.state_dict())
        )
        learned = jax.eval_shape(system.init, jax.random.key(0))
        learned = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), learned)
        learned |= {"variables": variables, "average": variables}
        batch = {"views": jnp.asarray(images[:, None]), "labels": jnp.asarray(labels)}
        options = {
            "xla_backend_optimization_level": "3"
        }  # in float64, convolutions take five times as long without

        @functools.partial(jax.jit, compiler_options=options)
        def update(learned, step):
            done = system.update(learned, batch, jax.random.key(0), step)
            return done.learned, done.values["loss"]

        ours = []
        for step in range(STEPS):
            learned, loss = update(learned, step)
            ours.append(float(loss))
    theirs = pytorch_steps(
        model, torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert theirs[-1] < theirs[0]
    expected = cfmlc_jax.from_torch("resnet18", model.state_dict())
    for collection in ("params", "batch_stats"):
        # Conversion gives float32.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
            learned["variables"][collection],
            expected[collection],
        )
