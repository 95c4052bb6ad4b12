"""Sums of gradients over micro-batches, and how a batch is split into them, on one device and on eight."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import mesh_of

from cfmlc_jax.engine import accumulation
from cfmlc_jax.engine import mesh as meshes


def test_micro_batches_have_whole_groups_and_the_first_starts_with_the_first():
    images = np.arange(16)
    parts = accumulation.split({"images": images}, 2, group=2)["images"]
    np.testing.assert_array_equal(parts, [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]])
    np.testing.assert_array_equal(accumulation.split(images, 4, group=4), images.reshape(4, 4))
    assert accumulation.split(np.zeros((8, 5, 3)), 4).shape == (4, 2, 5, 3)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_gradients_are_summed_and_values_kept(rng, number):
    x = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    params = {"w": jnp.asarray(rng.normal(size=3), jnp.float32)}

    def loss(params, x):
        return jnp.tanh(x @ params["w"]).sum()

    def gradient(i, part, carried):
        value, gradient = jax.value_and_grad(loss)(params, part)
        return gradient, carried.at[i].set(value), {"loss": value, "first": part[0]}

    total, carried, values = jax.jit(
        lambda x: accumulation.accumulate(gradient, params, jnp.zeros(number), x, number=number)
    )(x)
    expected, summed = jax.value_and_grad(loss)(params, x)
    np.testing.assert_allclose(total["w"], summed["w"], rtol=1e-5)
    np.testing.assert_allclose(values["loss"].sum(), expected, rtol=1e-5)
    np.testing.assert_array_equal(carried, values["loss"])
    np.testing.assert_array_equal(values["first"], x[:number])


@pytest.mark.parametrize(("number", "group", "stays"), [(4, 1, True), (2, 2, True), (4, 8, False)])
def test_every_micro_batch_is_on_all_devices(number, group, stays):
    """Images move only if a device has no whole number of groups for each; then no device gets all images."""
    mesh = mesh_of(8)

    def split(x):
        with meshes.in_use(mesh):
            return accumulation.split(x, number, group)

    x = jax.device_put(np.arange(32 * 50, dtype=np.uint8).reshape(32, 50), meshes.batch_sharding(mesh))
    compiled = jax.jit(split).lower(x).compile()
    parts = compiled(x)
    assert {shard.data.shape for shard in parts.addressable_shards} == {(number, 32 // number // 8, 50)}
    np.testing.assert_array_equal(parts, accumulation.split(np.asarray(x), number, group))
    sent = re.findall(r" (all-gather|all-to-all|collective-permute)\(", compiled.as_text())
    assert bool(sent) != stays
    assert "all-gather" not in sent
