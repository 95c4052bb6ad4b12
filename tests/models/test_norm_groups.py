"""Batch statistics by groups of images: each group as a batch by itself, on any number of devices."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_eight_devices_do_what_one_does_and_send_statistics_only(rng, groups):
    x = pixels(rng)
    layer = Mapped(BatchNorm(groups=groups))
    variables = layer.init(jax.random.key(0), x, train=False)

    def run(x):
        y, updated = trained(layer, variables, x)
        return jnp.sin(y).sum(), (y, updated)

    def place(devices):
        mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    step = jax.jit(jax.value_and_grad(run, has_aux=True))
    one, eight = step(place(1)), step(place(8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eight, one)
    text = step.lower(place(8)).compile().as_text()
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\][^=]*? (?:all-gather|all-to-all)", text)
    sizes = [np.prod([int(n) for n in shape.split(",") if n] or [1]) for shape in gathered]
    assert max(sizes) <= IMAGES_IN_BATCH * x.shape[-1]


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
