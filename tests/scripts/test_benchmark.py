"""The benchmark's flags, its table, and a tiny run of its processes."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.models import catalogue
from cfmlc_jax.torch_weights import mlc_pat
from scripts.benchmark import __main__ as command
from scripts.benchmark import inputs, layers, memory, processes, tables
from scripts.benchmark.result import Result


def result(name, framework, seconds, peak_mb=100.0):
    return Result(name, framework, 6e9, "cpu", seconds, peak_mb)


def test_table_with_a_peer_has_ratios_of_the_fastest_runs():
    measured = [
        [
            result("train", "jax", [0.6, 0.3, 0.9]),
            result("train", "torch", [0.2, 0.25], 50.0),
        ],
        [result("input", "jax", [0.01])],
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.table(measured).splitlines()]
    assert lines[0] == ["", "cfmlc_jax", "PyTorch", "ratio"]
    assert lines[2] == ["train, s", "0.3", "0.2", "1.50"]
    assert lines[3][:2] == ["train, median, s", "0.6"]
    assert lines[4] == ["train, GF/s", "20", "30", "0.67"]
    assert lines[5] == ["train, peak memory, MB", "100", "50", "2.00"]
    assert lines[6] == ["input, images/s", "100", "", ""]


def test_table_without_a_peer_has_one_column():
    table = tables.table([[result("matmul", "jax", [0.5])]])
    assert table.splitlines() == ["|  | cfmlc_jax |", "|---|---:|", "| matrix product, GF/s | 12 |"]


def test_memory_that_was_not_measured_has_no_line():
    both = [result("input", "jax", [0.5]), result("input", "torch", [0.5], None)]
    assert "memory" not in tables.table([both])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=train,speed"], "--only has speed; give some of train,forward,input"),
        (["--repeats=0"], "--repeats: '0' is not a whole number of 1 or more; --help lists the arguments"),
        (["--grid=1"], "--grid 1 makes no patches; give 2 or more"),
        (["--dtype=float16"], "--dtype: invalid choice: 'float16'"),
        (["--batches=3"], "unrecognized arguments: --batches=3; --help lists the arguments"),
    ],
)
def test_invalid_flags_are_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        command.parse(arguments)
    assert "\n" not in str(error.value)


def test_a_wanted_peer_must_be_installed():
    assert command.choose_peer("auto", True) == "torch"
    assert command.choose_peer("auto", False) == "none"
    assert command.choose_peer("none", True) == "none"
    with pytest.raises(InputError, match="--peer=torch needs PyTorch; pip install"):
        command.choose_peer("torch", False)


def test_generated_photos_are_like_photos(tmp_path):
    inputs.write_photos(tmp_path, 2)
    paths = inputs.photos_in(tmp_path)
    assert [path.name for path in paths] == ["0000.jpg", "0001.jpg"]
    assert all(60_000 < path.stat().st_size < 250_000 for path in paths)
    pixels = np.asarray(inputs.photo(np.random.default_rng(0)))
    assert (pixels.shape, pixels.dtype) == ((480, 640, 3), np.uint8)
    assert pixels.std() > 20


def test_folders_without_photos(tmp_path):
    with pytest.raises(InputError, match=r"has no file \.jpg or \.jpeg"):
        inputs.photos_in(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        inputs.photos_in(tmp_path / "none")


def test_a_failing_process_is_a_one_line_error():
    flags = command.parse(["--model=resnet11", "--batch=8", "--peer=none"])
    with pytest.raises(
        RunError, match="jax train ended with exit code 1: error: model 'resnet11' is not one of"
    ):
        processes.measure("train", flags, ["--model=resnet11", "--batch=8"])


FORKS = """
import os, sys
block = bytearray(b"a") * 64_000_000
for _ in range(3):
    if not os.fork():
        break
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not memory.IS_MEASURABLE, reason="the kernel is not Linux")
def test_memory_that_forked_processes_share_is_counted_once():
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FORKS], **streams) as process:
        for _ in range(4):
            process.stdout.readline()
        assert len(memory.below(process.pid)) == 3
        of_each = [memory.proportional(number) for number in (process.pid, *memory.below(process.pid))]
        assert max(of_each) < 40e6
        assert 64e6 < memory.total(process.pid) < 128e6
        assert memory.peak_during(lambda: process.communicate(b""), process.pid) > 64e6
    assert memory.total(process.pid) == 0


def test_tiny_run(tmp_path, capsys):
    path = tmp_path / "result.json"
    arguments = ["--model=resnet_small", "--size=16", "--batch=8", "--repeats=2", "--peer=none"]
    arguments += ["--workers=1", "--input_images=8", "--only=forward,input", f"--json={path}"]
    assert command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "resnet_small, 8 images of 5 views of 16 px, float32, cpu, fastest of 2" in out
    document = json.loads(path.read_text())
    assert [entry["name"] for entry in document["results"]] == ["matmul", "forward", "input"]
    for entry in document["results"]:
        assert len(entry["seconds"]) == 2
        assert min(entry["seconds"]) > 0
        assert entry["peak_mb"] > 10
    assert document["results"][1]["flops"] > 1e6
    assert document["settings"]["model"] == "resnet_small"


@pytest.fixture(scope="module")
def pytorch_models():
    """PyTorch's side of the benchmark."""
    return pytest.importorskip("scripts.benchmark.pytorch_models", reason="PyTorch is not installed")


def abstract(name, num_classes):
    """Our model, and its variables without values."""
    model = catalogue.create_model(name, num_classes, attention="cross", image_size=64)
    init = functools.partial(model.init, train=False)
    return model, jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "resnet_small", "convnext_tiny"])
def test_both_frameworks_have_as_many_parameters(name, pytorch_models):
    if name not in pytorch_models.ARCHITECTURES:
        pytest.importorskip("timm", reason="it has this model; pip install timm")
    with pytorch_models.torch.device("meta"):
        theirs = pytorch_models.Classifier(name, 80)
    _, variables = abstract(name, 80)
    ours = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert ours == sum(parameter.numel() for parameter in theirs.parameters())


def test_both_frameworks_have_the_same_logits(rng, pytorch_models):
    torch = pytorch_models.torch
    model, shapes = abstract("resnet18", 3)

    def filled(leaf):
        values = rng.standard_normal(leaf.shape, np.float32)
        # Kernels keep the size of their input; scales and variances are positive.
        return values / np.sqrt(leaf.size / leaf.shape[-1]) if leaf.ndim > 1 else np.abs(values) + 0.5

    variables = jax.tree.map(filled, shapes)
    entries = mlc_pat.to_torch("resnet18", variables)
    theirs = pytorch_models.Classifier("resnet18", 3).eval()
    blocks = [f"layer{stage}.{i}" for stage in range(1, 5) for i in range(2)]
    names = {"backbone.0": "conv1", "backbone.1": "bn1"}
    names |= {f"backbone.{4 + i}": block for i, block in enumerate(blocks)}
    names |= {f"heads.{i}": f"fc.fc{i + 1}" for i in range(3)}
    weights = {}
    for key in theirs.state_dict():
        half, index, entry = key.split(".", 2)
        weights[key] = torch.from_numpy(np.array(entries[f"{names[f'{half}.{index}']}.{entry}"]))
    theirs.load_state_dict(weights)
    views = rng.integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        expected = theirs(pytorch_models._pixels(torch.from_numpy(views)))
    outputs = jax.jit(functools.partial(model.apply, train=False))(variables, views.astype(np.float32) / 255)
    for ours, logits in zip((outputs.whole, outputs.attention, outputs.score), expected):
        np.testing.assert_allclose(ours[0], logits, rtol=1e-4, atol=1e-4 * np.abs(logits.numpy()).max())


@pytest.mark.parametrize("name", inputs.LAYERS)
def test_both_frameworks_differentiate_the_same_layer(name, monkeypatch):
    """By a map and as many weights; of the blur, which has none, equal numbers."""
    pytorch_layers = pytest.importorskip(
        "scripts.benchmark.pytorch_layers", reason="PyTorch is not installed"
    )
    channels = 256 if name == "query2label" else 256 // 32
    monkeypatch.setitem(inputs.LAYERS, name, (2, 4, 4, channels))
    weights, of_map = layers.step(name)()
    other_map, *other_weights = pytorch_layers.step(name, "cpu")()
    assert of_map.shape == tuple(other_map.permute(0, 2, 3, 1).shape)
    ours = sum(leaf.size for leaf in jax.tree.leaves(weights))
    theirs = sum(tensor.numel() for tensor in other_weights)
    assert ours == theirs
    if name == "blur":
        np.testing.assert_allclose(of_map, other_map.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
