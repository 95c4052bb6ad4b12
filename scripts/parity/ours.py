"""Our side of the comparison: the package's own model, loss and training step."""

import functools
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfmlc_jax import losses
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import pat
from cfmlc_jax.classify.patching import HostViews, Whole
from cfmlc_jax.classify.update import ClassifierSystem, Objective, in_unit_range
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import State
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.torch_names import BRANCHES
from cfmlc_jax.optim import build as optim
from cfmlc_jax.optim import frozen
from cfmlc_jax.torch_weights import mlc_pat
from scripts.parity.inputs import GRID
from scripts.parity.observed import Observed, Step, sample
from scripts.parity.subject import Subject

PIVOT = POOLINGS["pivot"]


def observe(subject: Subject, views, batches, *, size: int, dtype: str, recipe) -> Observed:
    """Our results, in float64 or with float32 parameters."""
    print(f"cfmlc_jax in {dtype} …", file=sys.stderr, flush=True)
    attention, variables = subject.attention, subject.variables
    if dtype == "float64":
        variables = _in_float64(subject)
        views, batches = _as_float64(views), [(_as_float64(x), _as_float64(y)) for x, y in batches]
    # "highest", so that accelerators really compute in float32.
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        model = catalogue.create_model(
            subject.name, subject.num_classes, attention=attention, image_size=size, dtype=jnp.dtype(dtype)
        )
        stages = evaluate(model, variables, views, attention=attention)
        steps = train(model, variables, batches, attention=attention, recipe=recipe) if batches else []
    return Observed(stages, steps)


def _as_float64(x):
    return np.asarray(x, np.float64)


def _in_float64(subject):
    """Our variables in float64, with the scales of in-place norms computed in float64."""

    def widen(used, stored):
        return np.abs(_as_float64(stored)) + 1e-5 if (used != stored).any() else _as_float64(used)

    stored = mlc_pat.from_torch(subject.name, subject.state_dict, in_place_norms=False)
    return jax.tree.map(widen, subject.variables, stored)


def evaluate(model, variables, views: np.ndarray, *, attention: str) -> dict[str, np.ndarray]:
    """Our stages for views [b, v, s, s, 3], float64, by the names of `Reference.evaluate`."""

    @jax.jit
    def run(variables, views):
        outputs = model.apply(variables, in_unit_range(views), train=False)
        return outputs, PIVOT.logits(*HostViews(GRID).evidence(outputs))

    outputs, pooled = run(variables, views)
    logits = {name: getattr(outputs, "score" if name == "patch" else name) for name in BRANCHES[attention]}
    stages = outputs.features | {f"{name} logits": x for name, x in logits.items()}
    return {
        stage: np.asarray(x, np.float64) for stage, x in (stages | {"pooled patch logits": pooled}).items()
    }


def train(model, variables, batches, *, attention: str, recipe) -> list[Step]:
    """Our training steps, by the engine on one device.

    Args:
        model: a classifier.
        variables: initial {"params", "batch_stats"}, numpy arrays.
        batches: (views [b, v, s, s, 3], labels [b, k]) of every step.
        attention: attention of the model.
        recipe: the module with the reference's constants.
    """
    method = pat.METHODS["whole" if attention == "none" else "pat_t"]
    optimizer = recording(
        optim.adamw_one_cycle(
            max_lr=recipe.LEARNING_RATE,
            total_steps=recipe.EPOCHS * recipe.STEPS_PER_EPOCH,
            pct_start=recipe.PCT_START,
            weight_decay=recipe.WEIGHT_DECAY,
            trainable_mask=functools.partial(frozen.trainable_mask, frozen=model.frozen),
        )
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (meshes.DATA, meshes.FSDP))
    objective = Objective(
        loss=lambda logits, labels: losses.asymmetric_loss(
            logits, labels, gamma_neg=4, gamma_pos=0, clip=0.05
        ).sum(),
        names=pat.loss_names(method),
        patching=HostViews(GRID) if method.train_patches else Whole(GRID),
        pooling=PIVOT,
    )
    shape = (1, *batches[0][0].shape[1:])
    system = ClassifierSystem(model, shape, objective, optimizer, ema_decay=recipe.EMA_DECAY)
    state = _first_state(optimizer, variables, system.values)
    update = TrainStep(system, meshes.with_shardings(state, mesh), seed=0, log_every=1, mesh=mesh)
    steps = []
    for views, labels in batches:
        views = views if method.train_patches else views[:, :1]
        with nn.intercept_methods(_without_dropout):
            state, _ = update(state, {"views": views, "labels": labels})
        steps.append(_step_of(state, variables))
    return steps


class Recorded(NamedTuple):
    """State of an optimiser together with its last gradient."""

    gradient: Any
    inner: Any


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser, with the last gradient in its state."""

    def init(params):
        return Recorded(jax.tree.map(jnp.zeros_like, params), optimizer.init(params))

    def update(gradient, recorded, params=None):
        updates, inner = optimizer.update(gradient, recorded.inner, params)
        return updates, Recorded(gradient, inner)

    return optax.GradientTransformation(init, update)


def _without_dropout(call, arguments, options, context):
    if isinstance(context.module, nn.Dropout):
        return arguments[0]
    return call(*arguments, **options)


def _first_state(optimizer, variables, values):
    return State(
        step=jnp.int32(0),
        learned={
            "variables": jax.tree.map(jnp.array, variables),
            "average": jax.tree.map(jnp.array, variables),
            "opt_state": optimizer.init(variables["params"]),
            "mean_colour": jnp.zeros(3),
        },
        tally={name: jnp.zeros(()) for name in (*values, "steps")},
    )


def _step_of(state, start):
    learned = state.learned
    used = learned["opt_state"].inner.hyperparams

    def since_start(tree):
        return sample(jax.tree.map(lambda now, then: np.asarray(now) - then, tree, start))

    return Step(
        loss=float(state.tally["loss"]),
        settings=np.array([used[name] for name in ("learning_rate", "b1", "b2", "eps", "weight_decay")]),
        gradient=sample({"params": learned["opt_state"].gradient}),
        change=since_start(learned["variables"]),
        average=since_start(learned["average"]),
    )
