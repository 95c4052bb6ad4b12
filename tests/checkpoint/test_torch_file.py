"""Files of PyTorch. Most of this needs PyTorch, which is an optional extra, and is skipped without it."""

import os
import sys
from collections import OrderedDict

import numpy as np
import pytest

from cfmlc_jax.checkpoint.torch_file import read_torch, write_torch
from cfmlc_jax.errors import InputError


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


def assert_same(found, arrays):
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert (type(found[key]), found[key].dtype) == (np.ndarray, array.dtype)
        np.testing.assert_array_equal(found[key], array)


def test_without_pytorch_the_way_out_is_named(monkeypatch, tmp_path, weights):
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
    found, average = read_torch(tmp_path / "x.pth")
    assert_same(found, weights)
    assert average is None


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
    found, average = read_torch(tmp_path / "x.pth.tar")
    assert_same(found, weights)
    assert_same(average, ema)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(torch, tmp_path, dtype):
    values = torch.tensor([1.5, -0.125], dtype=getattr(torch, dtype))
    torch.save({"a": values, "b": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pth")
    assert_same(
        read_torch(tmp_path / "x.pth")[0],
        {"a": np.array([1.5, -0.125], np.float32), "b": np.ones(2, np.float32)},
    )


class Code:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


CONTENTS = {
    "code": (
        lambda torch, w: {"state_dict": w, "x": Code()},
        r"holds \w+\.mkdir, which is code and is not run",
    ),
    "a module": (
        lambda torch, w: torch.nn.Linear(2, 2),
        r"holds torch.nn.modules.linear.Linear, which is code",
    ),
    "a tensor": (lambda torch, w: torch.ones(2), "holds a Tensor, not a state_dict"),
    "no tensors": (lambda torch, w: {"epoch": 3}, r"has no tensors .*\(keys: 'epoch'\)"),
    "an empty state_dict": (lambda torch, w: {"state_dict": {}}, "has no tensors"),
    "a damaged average": (lambda torch, w: {"state_dict": w, "state_dict_ema": 3}, "has no tensors"),
    "a stranger": (lambda torch, w: w | {"epoch": 3}, "'epoch' is a int among tensors"),
    "a sparse tensor": (lambda torch, w: w | {"s": torch.eye(2).to_sparse()}, "s is not a dense tensor"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_files_that_hold_something_else(torch, monkeypatch, tmp_path, weights, content):
    monkeypatch.chdir(tmp_path)
    make, message = CONTENTS[content]
    torch.save(make(torch, dict(tensors(torch, weights))), "x.pth")
    assert_refused(tmp_path / "x.pth", message)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0, 0.05, 0.5, 0.99])
def test_a_file_that_is_cut_short(torch, tmp_path, weights, share, zipped):
    path = tmp_path / "x.pth"
    torch.save(tensors(torch, weights), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(path, r"\([\d,]+ bytes\) is cut short, damaged or not of PyTorch")


def test_other_files(torch, tmp_path):
    (tmp_path / "x.pth").write_text("<html>404: not found</html>\n" * 10)
    assert_refused(tmp_path / "x.pth", "not of PyTorch")
    assert_refused(tmp_path, "is a folder, not a file of PyTorch")
    assert_refused(tmp_path / "y.pth", r"cannot be read \(No such file or directory\)")


def assert_refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        read_torch(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_what_is_written_is_read_again_and_by_mlc_pat(torch, tmp_path, weights):
    average = {key: np.asarray(array + 1) for key, array in weights.items()}
    path = tmp_path / "x.pth.tar"
    write_torch(path, weights, average)
    found, found_average = read_torch(path)
    assert_same(found, weights)
    assert_same(found_average, average)
    # Its scripts take these two entries.
    stored = torch.load(path)
    assert stored["best_mAP"] is None
    assert torch.equal(stored["state_dict_ema"]["conv1.weight"], torch.from_numpy(average["conv1.weight"]))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth.tar"]


def test_without_an_average_the_weights_stand_in(torch, tmp_path, weights):
    write_torch(tmp_path / "x.pth", weights)
    assert_same(read_torch(tmp_path / "x.pth")[1], weights)


def test_a_place_that_cannot_be_written(torch, tmp_path, weights):
    with pytest.raises(InputError, match=r"x\.pth cannot be written \(No such file or directory\)"):
        write_torch(tmp_path / "nowhere" / "x.pth", weights)
