"""The compiled steps: one update, and the logits of one batch."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cfmlc_jax.causal import effects
from cfmlc_jax.causal.views import cells, remove_one
from cfmlc_jax.classify import method as methods
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.state import TrainState
from cfmlc_jax.optim import ema, frozen

# Patches come as views of their own.
WITHOUT_CUTTING = methods.Patches((2,))
REMOVAL = 1  # the stream of random numbers that removes patches; dropout has the step's own


def tallied(loss_names) -> tuple[str, ...]:
    """Names of what a training step adds to the state's tally."""
    return ("loss", *loss_names, "grad_norm")


def train_step(
    model,
    optimizer,
    method: methods.Method,
    *,
    patches: methods.Patches = WITHOUT_CUTTING,
    null: str = "mean",
    null_rate: float = 0.0,
    mean_rate: Callable | None = None,
    ema_decay: float,
    log_every: int,
    seed: int,
    mesh,
    shardings,
) -> jax.stages.Wrapped:
    """A compiled (state, batch) -> (state, first_bad): one update on a global batch.

    The state is donated. The batch is {"views": [b, v, s, s, 3] (`in_unit_range`), "labels": float32
    [b, k]}, split over the mesh's devices; batch statistics and the loss's sum are over all of it.
    With `patches` to cut here, the views are whole ones, v = 1. A share `null_rate` of the images shows
    the null in place of one of the patches. `mean_rate`, step -> mu, is for heads with a mean feature: the
    share of it that a step keeps. Parameters that the model calls frozen get no gradient;
    the optimiser must not decay them.
    `first_bad` is the position in `watched_names` of the first value that is not finite, or −1.
    """

    def step(state: TrainState, batch):
        views = in_unit_range(batch["views"])
        colour = views[:, 0].mean(axis=(0, 1, 2))
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        rngs = {"dropout": key}
        if null_rate:
            # The mean colour so far: the first step's is still black.
            removal = jax.random.fold_in(key, REMOVAL)
            views = _with_nulls(removal, views, null, null_rate, state.mean_colour, patches)

        def objective(params):
            params = frozen.hold(params, model.frozen)
            options = {} if mean_rate is None else {"mu": mean_rate(state.step)}
            outputs, updated = model.apply(
                state.variables | {"params": params},
                _cut(views, patches),
                train=True,
                mutable=["batch_stats"],
                rngs=rngs,
                **options,
            )
            parts = method.loss(outputs, batch["labels"])
            return sum(parts.values()), (parts, updated.get("batch_stats", {}))

        gradient_of = jax.value_and_grad(objective, has_aux=True)
        (loss, (parts, batch_stats)), gradient = gradient_of(state.variables["params"])
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.variables["params"])
        variables = {
            "params": optax.apply_updates(state.variables["params"], updates),
            "batch_stats": batch_stats,
        }
        values = {"loss": loss, **parts, "grad_norm": optax.tree.norm(gradient)}
        new_state = TrainState(
            step=state.step + 1,
            variables=variables,
            average=ema.update(state.average, variables, ema_decay),
            opt_state=opt_state,
            mean_colour=_running_mean(state.mean_colour, colour, state.step),
            tally=_tally(state.tally, values | {"steps": 1.0}, state.step % log_every == 0),
        )
        return new_state, _first_bad(_watched(batch_stats, parts, gradient))

    in_shardings = (shardings, meshes.batch_sharding(mesh))
    out_shardings = (shardings, meshes.replicated(mesh))
    return jax.jit(
        step,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=0,
        compiler_options=meshes.compiler_options(mesh),
    )


def _with_nulls(key, views, null, rate, mean_colour, patches):
    """Views [b, v, s, s, 3] of which some show the null where one patch was, in all views that show that place."""
    b, v, size, _, _ = views.shape
    grid, overlap = patches.grid, patches.overlap
    count = len(cells(size, grid, overlap))
    which, whether = jax.random.split(key)
    drawn = jax.random.randint(which, (b,), 0, count)
    patch = jnp.where(jax.random.bernoulli(whether, rate, (b,)), drawn, -1)
    blank = effects.null_images(views[:, 0], null, mean_colour)
    whole = remove_one(views[:, 0], blank, patch, grid, overlap=overlap)[:, None]
    if v == 1:
        return whole
    return jnp.concatenate([whole, patches.without(views, blank, patch)], axis=1)


def _cut(views, patches):
    """Views as they come, or wholes with the patches that are to be cut here."""
    return views if patches.size is None else patches.cut(views[:, 0])


def in_unit_range(views):
    """Views in [0, 1], as models take them: pixels uint8 -> float32; floats are there already."""
    if jnp.issubdtype(views.dtype, jnp.floating):
        return views
    return views.astype(jnp.float32) / 255


def watched_names(variables, loss_names) -> list[str]:
    """Paths of the values that a training step checks, in the order of its check."""
    parts = {name: 0 for name in loss_names}
    tree = _watched(variables["batch_stats"], parts, variables["params"])
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _leaves(tree)]


def score_step(
    model, method: methods.Method, *, kinds, null: str, patches: methods.Patches, mesh
) -> jax.stages.Wrapped:
    """A compiled (variables, mean_colour, views) -> logits by name, each [b, k] on every device.

    "whole", "patch", "combined" as in `method.predict`, and "null_<kind>", the counterfactual
    logits, for every kind of total direct effect. Where there are patches, "attention" [b, p, k]
    too: the logits whose softmax over patches says where a class finds its evidence. With the kind
    "feature", "cosine" [b]: of the features with the mean feature.
    """

    def score(variables, mean_colour, views):
        views = in_unit_range(views)

        def apply(x):
            return model.apply(variables, x, train=False)

        outputs = apply(_cut(views, patches))
        logits = methods.predict(outputs, method.pooling)
        evidence = methods.patch_evidence(outputs)
        if evidence is not None:
            logits["attention"] = method.pooling.focus(*evidence)
        if kinds:
            nulls = methods.counterfactuals(
                apply,
                views,
                outputs,
                kinds=kinds,
                null=null,
                mean_colour=mean_colour,
                patches=patches,
                pooling=method.pooling,
            )
            shape = logits["combined"].shape
            logits |= {f"null_{kind}": jnp.broadcast_to(nulls[kind], shape) for kind in kinds}
        if "feature" in kinds:
            logits["cosine"] = outputs.cosine[:, 0]
        return logits

    options = meshes.compiler_options(mesh)
    return jax.jit(score, out_shardings=meshes.replicated(mesh), compiler_options=options)


def gather(array, mesh):
    """A global array whole on every device, and so on every process."""
    return _gathering(mesh)(array)


@functools.cache
def _gathering(mesh):
    return jax.jit(lambda array: array, out_shardings=meshes.replicated(mesh))


def _watched(batch_stats, parts, gradient):
    # In the order of the forward pass: the first layer whose activations overflow is the one named.
    return [("batch_stats", batch_stats), ("loss", parts), ("gradient", gradient)]


def _leaves(tree):
    leaves = []
    for name, part in tree:
        leaves += jax.tree_util.tree_leaves_with_path({name: part})
    return leaves


def _first_bad(tree):
    bad = jnp.stack([~jnp.isfinite(leaf).all() for _, leaf in _leaves(tree)])
    return jnp.where(bad.any(), jnp.argmax(bad), -1)


def _running_mean(mean, new, count):
    return mean + (new - mean) / (count + 1)


def _tally(sums, values, afresh):
    return {name: jnp.where(afresh, 0.0, sums[name]) + values[name] for name in sums}
