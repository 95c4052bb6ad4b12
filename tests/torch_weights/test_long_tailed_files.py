"""The reference's files. Most of this needs PyTorch, which is an optional extra, and is skipped without it."""

import sys

import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights import long_tailed


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install 'cfmlc_jax[torch]'")


@pytest.fixture
def checkpoint(rng):
    weights = {
        "feat_model": {"module.conv1.weight": rng.standard_normal((4, 3, 3, 3), np.float32)},
        "classifier": {"module.weight": rng.standard_normal((5, 4), np.float32)},
    }
    return {"state_dict_best": weights, "state_dict": weights, "embed": rng.standard_normal(4, np.float32)}


def tensors(torch, weights):
    return {
        part: {key: torch.from_numpy(array) for key, array in entries.items()}
        for part, entries in weights.items()
    }


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for part, entries in expected.items():
        assert actual[part].keys() == entries.keys()
        for key, array in entries.items():
            assert isinstance(actual[part][key], np.ndarray)
            np.testing.assert_array_equal(actual[part][key], array)


def test_without_pytorch_the_error_says_what_to_install(monkeypatch, tmp_path, checkpoint):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needed to read .*x\.pth: pip install 'cfmlc_jax\[torch\]'"):
        long_tailed.read(tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"PyTorch is needed to write .*x\.pth"):
        long_tailed.write(tmp_path / "x.pth", checkpoint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["state_dict_best", "state_dict"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_of_the_reference(torch, tmp_path, checkpoint, key, dtype):
    """As its training writes them, with the mean and the best accuracy as numpy has them."""
    stored = {
        "epoch": 3,
        "best_acc": np.float64(0.5),
        key: tensors(torch, checkpoint[key]),
        "embed": checkpoint["embed"].astype(dtype),
    }
    torch.save(stored, tmp_path / "x.pth")
    actual = long_tailed.read(tmp_path / "x.pth")
    assert actual.keys() == {key, "embed"}
    assert_same(actual[key], checkpoint[key])
    assert actual["embed"].dtype == np.float32
    np.testing.assert_array_equal(actual["embed"], checkpoint["embed"])


def test_written_files_are_read_by_the_reference(torch, tmp_path, checkpoint):
    long_tailed.write(tmp_path / "x.pth", checkpoint)
    stored = torch.load(tmp_path / "x.pth", weights_only=False)
    assert stored.keys() == {
        "epoch", "best_epoch", "best_acc", "state_dict", "state_dict_best", "embed"
    }  # fmt: skip
    assert isinstance(stored["embed"], np.ndarray)
    assert torch.is_tensor(stored["state_dict"]["classifier"]["module.weight"])
    assert_same(long_tailed.read(tmp_path / "x.pth")["state_dict_best"], checkpoint["state_dict_best"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([1], "has neither 'state_dict_best' nor 'state_dict'"),
        ({"state_dict": 3}, "has neither 'state_dict_best' nor 'state_dict'"),
        ({"state_dict": {"feat_model": {"a": 3}}}, "'a' is a int among tensors"),
        ({"state_dict": {"feat_model": 3}}, "'feat_model' is a int, not a state_dict"),
        ({"state_dict": {}, "embed": [1.0]}, "'embed' is not an array of numbers"),
        ({"state_dict": {}, "embed": np.arange(3)}, "'embed' is not an array of 32 or 64 bit floats"),
        ({"state_dict": {}, "embed": Code()}, "which is code and is not run"),
    ],
)
def test_other_files(torch, tmp_path, capsys, stored, message):
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as error:
        long_tailed.read(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    assert "run" not in capsys.readouterr().out


def test_truncated_missing_and_folder_paths_are_errors(torch, tmp_path, checkpoint):
    path = tmp_path / "x.pth"
    long_tailed.write(path, checkpoint)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"x\.pth \([\d,]+ bytes\) is truncated, damaged"):
        long_tailed.read(path)
    with pytest.raises(InputError, match="is a folder, not a file of weights"):
        long_tailed.read(tmp_path)
    with pytest.raises(InputError, match=r"y\.pth cannot be read \(No such file or directory\)"):
        long_tailed.read(tmp_path / "y.pth")
