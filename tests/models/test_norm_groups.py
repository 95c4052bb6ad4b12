"""Batch statistics by groups of images: each group as a batch by itself, on any number of devices."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import mesh_of

from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers.images import IMAGES
from cfmlc_jax.models.layers.norms import BatchNorm

IMAGES_IN_BATCH = 8


class Mapped(nn.Module):
    """A norm mapped over images, as the classifier maps its backbone."""

    inner: nn.Module

    def __call__(self, x, *, train):
        run = nn.vmap(
            lambda inner, one: inner(one, train=train),
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False},
            axis_name=IMAGES,
        )
        return run(self.inner, x)


def pixels(rng):
    """Images that differ, [8, v, h, w, c], so that groups do."""
    offsets = rng.normal(3, 2, size=(IMAGES_IN_BATCH, 1, 1, 1, 1))
    return jnp.asarray(offsets + rng.normal(size=(IMAGES_IN_BATCH, 5, 3, 3, 2)), jnp.float32)


def trained(layer, variables, x):
    return jax.jit(functools.partial(layer.apply, train=True, mutable=["batch_stats"]))(variables, x)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_each_group_has_the_statistics_of_its_own_batch(rng, groups):
    x = pixels(rng)
    one, grouped = Mapped(BatchNorm()), Mapped(BatchNorm(groups=groups))
    variables = one.init(jax.random.key(0), x, train=False)
    y, updated = trained(grouped, variables, x)
    alone = [trained(one, variables, part) for part in jnp.split(x, groups)]
    np.testing.assert_allclose(y, np.concatenate([part for part, _ in alone]), atol=1e-5)
    for name, value in alone[0][1]["batch_stats"]["inner"].items():
        np.testing.assert_allclose(updated["batch_stats"]["inner"][name], value, rtol=1e-6)


def test_gradients_are_those_of_the_groups_apart(rng):
    x = pixels(rng)
    weights = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    one, grouped = Mapped(BatchNorm()), Mapped(BatchNorm(groups=4))
    variables = one.init(jax.random.key(0), x, train=False)

    def scalar(layer, x, weights):
        return (jnp.sin(trained(layer, variables, x)[0]) * weights).sum()

    ours = jax.grad(functools.partial(scalar, grouped))(x, weights)
    theirs = [
        jax.grad(functools.partial(scalar, one))(*parts)
        for parts in zip(jnp.split(x, 4), jnp.split(weights, 4))
    ]
    np.testing.assert_allclose(ours, np.concatenate(theirs), atol=1e-5)
    # A group's statistics are not another's concern.
    of_first = jax.grad(lambda x: jnp.sin(trained(grouped, variables, x)[0][:2]).sum())(x)
    assert np.abs(of_first[:2]).max() > 1e-3
    np.testing.assert_array_equal(of_first[2:], 0)


def statistics_sent(text):
    """Kind and number of values of each collective of statistics, with which gradients or the loss may travel."""
    sent = re.findall(
        r"^\s*(?:ROOT )?%\S+ = (.*?) (all-gather|all-reduce|all-to-all|collective-permute)\(", text, re.M
    )
    shapes = [(kind, re.findall(r"\w+\[([\d,]*)\]", shape)) for shape, kind in sent]
    return [
        (kind, sum(int(np.prod([int(n) for n in each.split(",") if n])) for each in every))
        for kind, every in shapes
        if any(each for each in every)
    ]


@pytest.mark.parametrize(("groups", "gathers"), [(1, 1), (2, 2), (4, 2), (8, 0)])
def test_eight_devices_do_what_one_does_and_send_statistics_once(rng, groups, gathers):
    """Mean and variance once in the forward pass and once in the backward pass; those of a device's groups never."""
    x = pixels(rng)
    layer = Mapped(BatchNorm(groups=groups))
    variables = layer.init(jax.random.key(0), x, train=False)

    def step(devices):
        mesh = mesh_of(devices)

        def run(x):
            with meshes.in_use(mesh):
                y, updated = trained(layer, variables, x)
            return jnp.sin(y).sum(), (y, updated)

        placed = jax.device_put(x, meshes.batch_sharding(mesh))
        return jax.jit(jax.value_and_grad(run, has_aux=True)).lower(placed).compile(), placed

    (one, on_one), (eight, on_eight) = step(1), step(8)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eight(on_eight), one(on_one)
    )
    sent = statistics_sent(eight.as_text())
    kinds = [kind for kind, _ in sent]
    assert kinds.count("all-gather") == gathers
    # For one group, the backward pass; for several, the running statistics of the first.
    assert kinds.count("all-reduce") == 1
    assert len(kinds) == gathers + 1
    assert max(values for _, values in sent) <= IMAGES_IN_BATCH * 3 * x.shape[-1]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("devices", [1, 8])
def test_variances_far_below_the_squared_mean_keep_their_digits(rng, groups, devices):
    """Pixels of 10,000 ± 1: in float32, E[x²] − E[x]² would be wrong by several times the variance."""
    x = jnp.asarray(1e4 + rng.normal(size=(IMAGES_IN_BATCH, 5, 8, 8, 2)), jnp.float32)
    layer = Mapped(BatchNorm(groups=groups, momentum=1.0))
    variables = layer.init(jax.random.key(0), x, train=False)
    mesh = mesh_of(devices)

    def run(x):
        with meshes.in_use(mesh):
            return trained(layer, variables, x)

    y, updated = jax.jit(run)(jax.device_put(x, meshes.batch_sharding(mesh)))
    exact = np.asarray(x, np.float64).reshape(groups, -1, 2)
    statistics = updated["batch_stats"]["inner"]
    np.testing.assert_allclose(statistics["mean"], exact[0].mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(statistics["var"], exact[0].var(axis=0, ddof=1), rtol=1e-6)
    normed = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(y).reshape(normed.shape), normed, atol=3e-3)


def test_a_classifier_with_groups_equals_one_classifier_per_group(rng):
    views = jnp.asarray(rng.random((4, 5, 32, 32, 3)), jnp.float32)
    one, grouped = (
        catalogue.create(catalogue.Model("resnet_small", norm_groups=groups), 3, 32, catalogue.Patches())
        for groups in (1, 2)
    )
    variables = one.init(jax.random.key(0), views, train=False)
    outputs, updated = trained(grouped, variables, views)
    alone = [trained(one, variables, part) for part in (views[:2], views[2:])]
    expected = np.concatenate([part.score for part, _ in alone])
    np.testing.assert_allclose(outputs.score, expected, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updated, alone[0][1])
    joint, _ = trained(one, variables, views)
    assert np.abs(joint.score - expected).max() > 1e-2


def test_invalid_groups_are_refused(rng):
    x = pixels(rng)
    layer = Mapped(BatchNorm(groups=3))
    variables = layer.init(jax.random.key(0), x, train=False)
    with pytest.raises(InputError, match="8 images is not divisible by the 3 groups of the norms"):
        jax.eval_shape(lambda x: trained(layer, variables, x), x)
    with pytest.raises(InputError, match="norm_groups 0 must be at least 1"):
        catalogue.create(catalogue.Model("resnet_small", norm_groups=0), 3, 32)
