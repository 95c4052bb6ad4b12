"""The measurements of cfmlc_jax."""

from pathlib import Path

import jax
import numpy as np
from absl import flags as absl_flags

from cfmlc_jax import losses
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.patching import HostViews
from cfmlc_jax.classify.scoring import Score as score_step
from cfmlc_jax.classify.update import ClassifierSystem, Objective
from cfmlc_jax.data.pipeline import train_batches
from cfmlc_jax.data.sources.files import FileSource
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.flops import count
from cfmlc_jax.engine.state import plan
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.models import catalogue as models
from cfmlc_jax.optim import build as optim
from scripts.benchmark import inputs, layers
from scripts.benchmark.result import Work, timed


def _jax_work(run, flops) -> Work:
    device = jax.devices()[0]
    stats = device.memory_stats()
    peak = None if not stats else lambda: device.memory_stats()["peak_bytes_in_use"]
    return Work(timed(lambda: jax.block_until_ready(run())), flops, device.device_kind, device.platform, peak)


def matmul(flags) -> Work:
    """A product of square matrices, the ceiling."""
    side = inputs.matmul_side(jax.default_backend())
    matrix = jax.numpy.asarray(inputs.matrix(side))
    product = jax.jit(lambda a: a @ a)
    return _jax_work(lambda: product(matrix), 2.0 * side**3)


def _jax_model(flags):
    mesh = meshes.create()
    meshes.check_batch("batch_size", flags.batch)
    dtype = jax.numpy.dtype(flags.dtype)
    model = models.create_model(
        flags.model, inputs.CLASSES, attention="cross", image_size=flags.size, dtype=dtype
    )
    return model, mesh


def system(flags, model, **options) -> ClassifierSystem:
    """PAT-T's training by the published recipe.

    Args:
        flags: with `grid` and `size`.
        model: the classifier.
        options: further ones of the system.
    """
    pooling = POOLINGS["pivot"]
    objective = Objective(
        loss=lambda logits, labels: losses.asymmetric_loss(
            logits, labels, gamma_neg=4.0, gamma_pos=0.0, clip=0.05
        ).sum(),
        names=pat.loss_names(pat.METHODS["pat_t"]),
        patching=HostViews(flags.grid),
        pooling=pooling,
    )
    optimizer = optim.adamw_one_cycle(max_lr=1e-4, total_steps=1000)
    shape = (1, 1 + flags.grid**2, flags.size, flags.size, 3)
    return ClassifierSystem(model, shape, objective, optimizer, ema_decay=0.9997, **options)


def layer(name: str, flags) -> Work:
    """The gradients of one layer, a key of `inputs.LAYERS`."""
    return _jax_work(layers.step(name), 0.0)


def train(flags) -> Work:
    """PAT-T's update."""
    model, mesh = _jax_model(flags)
    trained = system(flags, model)
    born, abstract = plan(trained, seed=0, mesh=mesh)
    update, state = TrainStep(trained, abstract, seed=0, log_every=50, mesh=mesh), born()
    views, labels = inputs.batch(flags)
    on_device = meshes.to_devices({"views": views, "labels": labels}, mesh)
    flops = update.flops(state, on_device)

    def run():
        nonlocal state
        state, first_bad = update(state, on_device)
        return state, first_bad

    return _jax_work(run, flops)


def forward(flags) -> Work:
    """The combined prediction."""
    model, mesh = _jax_model(flags)
    born, _ = plan(system(flags, model), seed=0, mesh=mesh)
    score = score_step(model, HostViews(flags.grid), POOLINGS["pivot"], kinds=(), null="mean", mesh=mesh)
    views = meshes.to_devices(inputs.batch(flags)[0], mesh)
    learned = born().learned
    arguments = learned["variables"], learned["mean_colour"], views
    flops = count(score.trace(*arguments).jaxpr)
    return _jax_work(lambda: score(*arguments), flops)


def reading(flags) -> Work:
    """The input pipeline on photos."""
    absl_flags.FLAGS.mark_as_parsed()  # Grain reads its own flags' defaults there
    paths = inputs.photos_in(Path(flags.images))
    source = FileSource(
        root=Path(flags.images),
        split="train",
        paths=[path.name for path in paths],
        ids=[path.stem for path in paths],
        labels=inputs.labels(len(paths)).astype(np.uint8),
        class_names=tuple(str(k) for k in range(inputs.CLASSES)),
    )
    batches = train_batches(
        source,
        ToViews(flags.size, flags.grid, augment=True),
        batch_size=flags.batch,
        epochs=inputs.epochs_of(flags, len(paths)),
        seed=0,
        reading=Reading(threads=flags.threads, workers=flags.workers),
    )
    return Work(lambda: inputs.images_per_time(iter(batches), flags))
