"""The mesh sorts devices, in whatever order JAX lists them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError

# The process of each device of a TPU v5e-16, in the order of `jax.make_mesh`.
V5E_16 = (0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0)
# Two processes whose devices alternate.
ALTERNATING = (0, 1) * 4


@pytest.mark.parametrize("processes", [V5E_16, ALTERNATING])
def test_each_process_has_consecutive_devices(processes):
    devices = [SimpleNamespace(process_index=p, id=i) for i, p in enumerate(processes)]
    ordered = meshes.in_process_order(reversed(devices))
    assert [device.process_index for device in ordered] == sorted(processes)
    for process in set(processes):
        own = [device.id for device in ordered if device.process_index == process]
        assert own == sorted(own)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_shuffled_devices_get_the_same_images(monkeypatch, rng, fsdp):
    devices = jax.devices()
    expected = meshes.create(fsdp)
    monkeypatch.setattr(jax, "devices", lambda: [devices[i] for i in rng.permutation(len(devices))])
    mesh = meshes.create(fsdp)
    assert mesh == expected
    images = np.arange(16)
    for shard in meshes.to_devices(images, mesh).addressable_shards:
        # Device i gets the i-th pair of images.
        np.testing.assert_array_equal(shard.data, 2 * shard.device.id + np.arange(2))


def test_batches_are_split_evenly():
    meshes.check_batch("train.batch_size", 16, devices=8)
    with pytest.raises(
        InputError, match=r"^config\.train\.batch_size 12 is not divisible by the 8 devices; try 8 or 16$"
    ):
        meshes.check_batch("train.batch_size", 12, devices=8)
    with pytest.raises(InputError, match=r"try 8$"):
        meshes.check_batch("train.batch_size", 3)  # on the 8 of this process


def test_fsdp_divides_the_devices():
    with pytest.raises(InputError, match=r"^mesh\.fsdp 3 does not divide the 8 devices; try 1, 2, 4, 8$"):
        meshes.create(fsdp=3)


@pytest.mark.parametrize("fsdp", [2, 4])
def test_only_large_arrays_are_split_over_fsdp(fsdp):
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 128, 256), np.float32),
        "least": jax.ShapeDtypeStruct((meshes.LEAST_SPLIT,), np.float32),
        "less": jax.ShapeDtypeStruct((meshes.LEAST_SPLIT - 8,), np.float32),
        "odd": jax.ShapeDtypeStruct((1001, 1001), np.float32),
        "scale": jax.ShapeDtypeStruct((2048,), np.float32),
        "step": jax.ShapeDtypeStruct((), np.int32),
    }
    split = meshes.with_shardings(shapes, meshes.create(fsdp))
    parts = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in split.items()}
    assert parts == {name: leaf.shape for name, leaf in shapes.items()} | {
        "kernel": (3, 3, 128, 256 // fsdp),
        "least": (meshes.LEAST_SPLIT // fsdp,),
    }


@pytest.mark.parametrize("rows", [2, 1])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_parts_go_to_their_devices(rows, fsdp):
    """A list is consecutive rows; devices with several parts join them."""
    mesh = meshes.create(fsdp)
    images = np.arange(16 * 3, dtype=np.uint8).reshape(16, 3)
    parts = [images[i : i + rows] for i in range(0, 16, rows)]
    batch = {"views": parts, "mechanisms": {"shape": images[:, 0].astype(np.int32)}}
    placed = meshes.to_devices(batch, mesh)
    expected = meshes.to_devices({"views": images, "mechanisms": batch["mechanisms"]}, mesh)
    for one, other in zip(jax.tree.leaves(placed), jax.tree.leaves(expected), strict=True):
        assert one.sharding == other.sharding
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        for a, b in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert a.device == b.device
            np.testing.assert_array_equal(a.data, b.data)
