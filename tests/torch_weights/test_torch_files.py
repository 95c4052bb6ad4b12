"""Files of weights. What needs PyTorch, which is an optional extra, is skipped without it."""

import argparse
import os
import pathlib
import sys
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from fuzzing import cases
from hypothesis import given
from hypothesis import strategies as st

from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights.files import Weights, read_torch, weights_in, write_torch


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install 'cfmlc_jax[torch]'")


@pytest.fixture
def weights(rng):
    return {
        "conv1.weight": rng.standard_normal((4, 3, 3, 3), np.float32),
        "bn1.running_var": rng.random(4, np.float32),
        "bn1.num_batches_tracked": np.asarray(7, np.int64),
    }


def tensors(torch, arrays, prefix=""):
    return OrderedDict((prefix + key, torch.from_numpy(array.copy())) for key, array in arrays.items())


def assert_same(stored_weights, arrays):
    assert stored_weights.keys() == arrays.keys()
    for key, array in arrays.items():
        assert (type(stored_weights[key]), stored_weights[key].dtype) == (np.ndarray, array.dtype)
        np.testing.assert_array_equal(stored_weights[key], array)


def test_without_pytorch_the_error_says_what_to_install(monkeypatch, tmp_path, weights):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match=r"PyTorch is needed to read .*x\.pth: pip install 'cfmlc_jax\[torch\]'"
    ):
        read_torch(tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"PyTorch is needed to write .*x\.pth"):
        write_torch(tmp_path / "x.pth", weights)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("container", ["bare", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_in_its_containers(torch, tmp_path, weights, container, prefix, zipped):
    stored = tensors(torch, weights, prefix)
    stored = stored if container == "bare" else {container: stored, "epoch": 3}
    torch.save(stored, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    stored_weights = read_torch(tmp_path / "x.pth")
    assert_same(stored_weights.weights, weights)
    assert stored_weights.average is None


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_mlc_pat(torch, tmp_path, weights, zipped):
    """With all that its training puts there, numpy's arrays and numbers included."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    ema = {key: np.asarray(array + 1) for key, array in weights.items()}
    stored = {
        "epoch": 12,
        "state_dict": tensors(torch, weights, "module."),
        "state_dict_ema": tensors(torch, ema),
        "best_mAP": np.float64(85.1),
        "AP": np.arange(80.0),
        "AP_ema": np.arange(80, dtype=np.float32),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(stored, tmp_path / "x.pth.tar", _use_new_zipfile_serialization=zipped)
    stored_weights = read_torch(tmp_path / "x.pth.tar")
    assert_same(stored_weights.weights, weights)
    assert_same(stored_weights.average, ema)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(torch, tmp_path, dtype):
    values = torch.tensor([1.5, -0.125], dtype=getattr(torch, dtype))
    torch.save({"a": values, "b": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pth")
    assert_same(
        read_torch(tmp_path / "x.pth").weights,
        {"a": np.array([1.5, -0.125], np.float32), "b": np.ones(2, np.float32)},
    )


class Code:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


class OtherNamespace(argparse.Namespace):
    pass


CONTENTS = {
    "code": (
        lambda torch, w: {"state_dict": w, "x": Code()},
        r"contains \w+\.mkdir, which is code and is not run",
    ),
    "a module": (
        lambda torch, w: torch.nn.Linear(2, 2),
        r"contains torch.nn.modules.linear.Linear, which is code",
    ),
    "a tensor": (lambda torch, w: torch.ones(2), "contains a Tensor, not a state_dict"),
    "no tensors": (lambda torch, w: {"epoch": 3}, r"has no tensors .*\(keys: 'epoch'\)"),
    "an empty state_dict": (lambda torch, w: {"state_dict": {}}, "has no tensors"),
    "a damaged average": (lambda torch, w: {"state_dict": w, "state_dict_ema": 3}, "has no tensors"),
    "a stranger": (lambda torch, w: w | {"epoch": 3}, "'epoch' is a int among tensors"),
    "a sparse tensor": (lambda torch, w: w | {"s": torch.eye(2).to_sparse()}, "'s' is not a dense tensor"),
    "one of no data": (lambda torch, w: w | {"s": torch.ones(2, device="meta")}, "'s' is not a dense tensor"),
    "complex numbers": (lambda torch, w: w | {"s": torch.ones(2) * 1j}, "'s' is a tensor of complex numbers"),
    "code in a namespace": (
        lambda torch, w: {"state_dict": w, "args": argparse.Namespace(x=Code())},
        r"contains \w+\.mkdir, which is code and is not run",
    ),
    "a namespace of another kind": (
        lambda torch, w: {"state_dict": w, "args": OtherNamespace(lr=0.1)},
        r"contains [\w.]+OtherNamespace, which is code and is not run",
    ),
    "a path": (
        lambda torch, w: {"state_dict": w, "args": argparse.Namespace(data=pathlib.PosixPath("x"))},
        r"contains pathlib\.[\w.]*PosixPath, which is code and is not run",
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_files_without_weights_are_refused(torch, monkeypatch, tmp_path, weights, content):
    monkeypatch.chdir(tmp_path)
    make, message = CONTENTS[content]
    torch.save(make(torch, dict(tensors(torch, weights))), "x.pth")
    assert_refused(tmp_path / "x.pth", message)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_an_error(torch, tmp_path, weights, share, zipped):
    path = tmp_path / "x.pth"
    torch.save(tensors(torch, weights), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(path, r"\([\d,]+ bytes\) is truncated, damaged or not a PyTorch file")


def test_other_files(torch, tmp_path):
    (tmp_path / "x.pth").write_text("<html>404: not found</html>\n" * 10)
    assert_refused(tmp_path / "x.pth", "not a PyTorch file")
    assert_refused(tmp_path, "is a folder, not a file of weights; give the file in it")
    assert_refused(tmp_path / "y.pth", r"cannot be read \(No such file or directory\)")


def assert_refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        read_torch(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_written_files_are_read_by_us_and_by_mlc_pat(torch, tmp_path, weights):
    average = {key: np.asarray(array + 1) for key, array in weights.items()}
    path = tmp_path / "x.pth.tar"
    write_torch(path, weights, average)
    stored_weights = read_torch(path)
    assert_same(stored_weights.weights, weights)
    assert_same(stored_weights.average, average)
    # Its scripts take these two entries.
    stored = torch.load(path)
    assert stored["best_mAP"] is None
    assert torch.equal(stored["state_dict_ema"]["conv1.weight"], torch.from_numpy(average["conv1.weight"]))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth.tar"]


def test_without_an_average_the_weights_are_written_as_both(torch, tmp_path, weights):
    write_torch(tmp_path / "x.pth", weights)
    assert_same(read_torch(tmp_path / "x.pth").average, weights)


def test_an_unwritable_path_is_an_error(torch, tmp_path, weights):
    with pytest.raises(InputError, match=r"x\.pth cannot be written \(No such file or directory\)"):
        write_torch(tmp_path / "nowhere" / "x.pth", weights)


def test_extra_content_of_training_scripts_is_ignored(torch, tmp_path, weights):
    """As timm's and torchvision's do: a namespace of arguments, plain values only."""
    stored = {
        "epoch": 3,
        "arch": "resnet50",
        "state_dict": tensors(torch, weights),
        "args": argparse.Namespace(lr=0.1, model="resnet50", device=torch.device("cpu"), betas=(0.9, 0.99)),
    }
    torch.save(stored, tmp_path / "x.pth.tar")
    assert_same(read_torch(tmp_path / "x.pth.tar").weights, weights)


@pytest.fixture
def average(weights):
    return {key: np.asarray(array + 1) for key, array in weights.items()}


def prefixed(prefix, arrays):
    return {prefix + key: array for key, array in arrays.items()}


# (what a file holds of weights w and their average a, whether of both).
CONTAINERS = {
    "mlc_pat": (lambda w, a: {"state_dict": prefixed("module.", w), "state_dict_ema": a}, True),
    "torchvision": (
        lambda w, a: {"model": w, "model_ema": {"n_averaged": np.int64(7)[...]} | prefixed("module.", a)},
        True,
    ),
    "timm": (lambda w, a: {"state_dict": w, "model_ema": a, "optimizer": {"state": {0: w}}}, True),
    "weight averaging of lightning": (
        lambda w, a: {"state_dict": a, "current_model_state": w, "averaging_state": {}},
        True,
    ),
    "restoration": (lambda w, a: {"params": w, "params_ema": a}, True),
    "nested": (lambda w, a: {"model": {"state_dict": w}, "ema": {"decay": 0.9, "module": a}}, True),
    "compiled": (lambda w, a: {"net": prefixed("_orig_mod.module.", w)}, False),
    "parallel and compiled": (lambda w, a: {"network": prefixed("module._orig_mod.", w)}, False),
    "sharded": (lambda w, a: {"model_state": prefixed("_fsdp_wrapped_module.", w)}, False),
    "a decay by that name": (lambda w, a: {"weights": w, "ema": 0.999, "model_ema": True}, False),
    "none yet": (lambda w, a: {"model_state_dict": w, "state_dict_ema": None}, False),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_weights_and_average_in_the_places_that_scripts_use(tmp_path, weights, average, name):
    make, has_average = CONTAINERS[name]
    stored_weights = weights_in(tmp_path / "x.pth", make(weights, average) | {"epoch": 3})
    assert_same(stored_weights.weights, weights)
    if has_average:
        assert_same(stored_weights.average, average)
    else:
        assert stored_weights.average is None


def test_an_average_alone_serves_as_both_sets_of_weights(tmp_path, average):
    stored_weights = weights_in(tmp_path / "x.pth", {"ema_state_dict": average, "epoch": 3})
    assert_same(stored_weights.weights, average)
    assert_same(stored_weights.average, average)


@pytest.mark.parametrize(
    "stored",
    [
        {"idx_to_class": {0: "cat", 1: "dog"}},
        {"idx_to_class": {"1": "dog", "0": "cat"}},
        {"class_to_idx": {"dog": 1, "cat": 0}},
        {"classes": ["cat", "dog"]},
        {"meta": {"class_names": ("cat ", "dog")}},
        {"hyper_parameters": {"lr": 0.1, "label_names": ["cat", "dog"]}},
    ],
)
def test_class_names_of_a_file(tmp_path, weights, stored):
    assert weights_in(tmp_path / "x.pth", {"state_dict": weights} | stored).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "names", [{1: "cat", 2: "dog"}, ["cat", "cat"], ["cat", 3], ["cat", " "], {"cat": "dog"}, {0: "cat", 2: "dog"}]
)  # fmt: skip
def test_unusable_class_names_are_reported_and_ignored(tmp_path, weights, names):
    stored_weights = weights_in(tmp_path / "x.pth", {"state_dict": weights, "classes": names})
    assert stored_weights.class_names is None
    assert stored_weights.unread == "its 'classes' is not one name for each label from 0"


def test_a_number_of_classes_is_not_a_list_of_names(tmp_path, weights):
    stored_weights = weights_in(tmp_path / "x.pth", {"state_dict": weights, "classes": 80})
    assert (stored_weights.class_names, stored_weights.unread) == (None, "")


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("name", ["x.safetensors", "model.bin"])
def test_safetensors_need_no_pytorch(no_torch, tmp_path, weights, name):
    safetensors.numpy.save_file(weights, tmp_path / name, {"format": "pt"})
    stored_weights = read_torch(tmp_path / name)
    assert_same(stored_weights.weights, weights)
    assert stored_weights.average is None


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.float16, "F16"), (ml_dtypes.bfloat16, "BF16"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")],
)
def test_low_precision_in_safetensors_becomes_float32(no_torch, tmp_path, dtype, name):
    values = np.array([[1.5, -0.125]], dtype)
    write_safetensors(tmp_path / "x.safetensors", name, values)
    assert_same(read_torch(tmp_path / "x.safetensors").weights, {"a.weight": np.float32([[1.5, -0.125]])})


def write_safetensors(path, dtype, values):
    data = values.tobytes()
    header = (
        f'{{"a.weight":{{"dtype":"{dtype}","shape":{list(values.shape)},"data_offsets":[0,{len(data)}]}}}}'
    )
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


def test_a_type_of_safetensors_that_numpy_lacks(no_torch, tmp_path):
    write_safetensors(tmp_path / "x.safetensors", "F8_E8M0", np.zeros((1, 2), np.uint8))
    assert_refused(tmp_path / "x.safetensors", "'a.weight' has the type F8_E8M0, which is not supported")


@pytest.mark.parametrize("share", [0, 0.001, 0.05, 0.5, 0.99])
def test_a_truncated_safetensors_file_is_an_error(no_torch, tmp_path, weights, share):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(path, r"\([\d,]+ bytes\) is truncated, damaged or not a safetensors file")


@pytest.mark.parametrize(
    "content",
    [
        b"<html>404: not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        b"\x40" + bytes(7) + b"{" + b"x" * 70,
    ],
)
def test_invalid_safetensors_are_refused(no_torch, tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert_refused(tmp_path / "x.safetensors", "not a safetensors file")
    assert_refused(tmp_path / "y.safetensors", r"cannot be read \(No such file or directory\)")


def test_a_file_of_pytorch_by_the_name_of_safetensors(torch, tmp_path, weights):
    torch.save(tensors(torch, weights), tmp_path / "x.safetensors")
    assert_same(read_torch(tmp_path / "x.safetensors").weights, weights)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just(np.ones(2, np.float32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["state_dict", "model", "ema", "module", "classes", "state_dict_ema", "a.b"])
            | st.integers(0, 2)
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@cases(200)
@given(ANYTHING)
def test_any_content_is_read_or_refused(stored):
    try:
        stored_weights = weights_in(pathlib.Path("x.pth"), stored)
    except InputError as error:
        message = str(error)
    else:
        message = "x.pth is read"
        assert isinstance(stored_weights, Weights)
        assert all(isinstance(array, np.ndarray) for array in stored_weights.weights.values())
    assert message.startswith("x.pth")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_tensor_that_repeats_one_number_is_not_copied(torch, tmp_path, kind):
    # A terabyte in a file of a kilobyte.
    large = torch.zeros(1, dtype=getattr(torch, kind)).expand(500_000, 500_000)
    torch.save({"a": large}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"take 1,000,000,000,000 bytes of the [24] that are stored"):
        read_torch(tmp_path / "x.pth")
    torch.save({"a": large[:3, :4]}, tmp_path / "x.pth")  # as buffers of positions are
    assert read_torch(tmp_path / "x.pth").weights["a"].shape == (3, 4)
