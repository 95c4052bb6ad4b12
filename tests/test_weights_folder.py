"""A folder of weights and configuration: read like a checkpoint, and refused where it is not whole."""

import json

import jax
import numpy as np
import pytest

from cfmlc_jax import checkpoint, weights_folder
from cfmlc_jax.errors import InputError

META = checkpoint.signed({"config": {"seed": 0}, "class_names": ["a", "b"], "num_classes": 2})
AVERAGE = {"params": {"head": {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2)}}, "batch_stats": {"mean": np.ones(3, np.float32)}}  # fmt: skip
COLOUR = np.array([0.1, 0.2, 0.3], np.float32)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    weights_folder.write(path, model={"average": AVERAGE, "mean_colour": COLOUR}, meta=META, card="# card")
    return path


def test_it_is_read_like_a_checkpoint(folder):
    assert checkpoint.find(folder) == checkpoint.find(folder / "model.safetensors") == folder
    assert checkpoint.read_meta(folder) == META
    assert checkpoint.num_classes(META) == 2
    shapes = checkpoint.model_shapes(folder)
    assert shapes["variables"] == shapes["average"]
    assert shapes["average"]["params"]["head"]["kernel"] == jax.ShapeDtypeStruct((3, 2), np.float32)
    model = checkpoint.read_part(folder, shapes)
    for name in ("variables", "average"):
        jax.tree.map(np.testing.assert_array_equal, model[name], AVERAGE)
    np.testing.assert_array_equal(model["mean_colour"], COLOUR)
    assert isinstance(model["mean_colour"], np.ndarray)


def test_arrays_come_with_the_wanted_sharding(folder):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    wanted = {"average": {"params": {"head": {"kernel": jax.ShapeDtypeStruct((3, 2), np.float32, sharding=sharding)}}}}  # fmt: skip
    kernel = checkpoint.read_part(folder, wanted)["average"]["params"]["head"]["kernel"]
    assert kernel.sharding == sharding
    np.testing.assert_array_equal(kernel, AVERAGE["params"]["head"]["kernel"])


def test_another_model_is_refused(folder):
    shapes = checkpoint.model_shapes(folder)
    shapes["average"]["params"]["head"]["kernel"] = jax.ShapeDtypeStruct((3, 4), np.float32)
    with pytest.raises(InputError, match=r"has no params\.head\.kernel of shape"):
        checkpoint.read_part(folder, shapes)
    with pytest.raises(InputError, match=r"belongs to another model \(average/params/head/kernel \[3, 2\]"):
        checkpoint.read_model(folder, shapes)
    with pytest.raises(InputError, match=r"has no params\.bias of shape"):
        checkpoint.read_part(
            folder, {"average": {"params": {"bias": jax.ShapeDtypeStruct((2,), np.float32)}}}
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"config\.json cannot be read .*No such file.*; export or download the folder again"),
        ("{", "cannot be read"),
        ("[]", "is not of a classifier of cfmlc_jax"),
        (json.dumps({"architectures": ["ResNet"]}), "which has the fields config and class_names"),
        (json.dumps(META | {"format": 99, "version": "9.1.0"}), "was written by version 9.1.0 of cfmlc_jax.*upgrade: pip"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_is_named(folder, text, words):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=words):
        checkpoint.read_meta(folder)


def test_damaged_weights_are_named(folder):
    file = folder / "model.safetensors"
    shapes = checkpoint.model_shapes(folder)
    data = file.read_bytes()
    for damaged in (data[:-3], b"", b"no tensors at all"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
            checkpoint.read_part(folder, shapes)
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
            checkpoint.model_shapes(folder)


def test_types_that_no_checkpoint_has_are_refused(tmp_path):
    import ml_dtypes

    half = {"average": {"params": {"a": np.zeros(2, ml_dtypes.bfloat16)}}}
    weights_folder.write(tmp_path, model=half, meta=META, card="")
    with pytest.raises(InputError, match=r"params\.a has the type BF16; store float32"):
        checkpoint.model_shapes(tmp_path)
